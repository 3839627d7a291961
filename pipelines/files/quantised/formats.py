"""The formats of weights with scales: how each is told by dtypes and shapes, and how it is put together.

ComfyUI's definitions are those of its package comfy-kitchen (0.2.20, ``backends/eager``), ModelOpt's those of its
``NVFP4QTensor`` and of the export that is called ``export_hf_checkpoint``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import FileError
from ...words import shown
from ..block_types import GROUPED_TYPES, SCALED_TYPES

if TYPE_CHECKING:
    import torch

    from ..header import TensorInfo
    from ..packed import PackedTensor
    from .said import Said

SCALES = (".weight_scale", ".scale_weight", ".weight_scale_inv")
TOTAL = ".weight_scale_2"
MODELOPT = "nvfp4 of ModelOpt"  # a name of our own: its files say nothing of single layers
NVFP4 = ("nvfp4", MODELOPT)
INSTEAD = "Get the bfloat16 file, a scaled float8 file or a GGUF file."
_NUMBERS = ("F32", "BF16", "F16")
_BLOCK = 128


@dataclass(frozen=True)
class Quantised:
    """A weight with scales.

    Attributes:
        qtype: how it is packed, see :attr:`..header.TensorInfo.dtype`.
        shape: of the values.
        scale: the name of its scales.
        total: the name of the scale of all, where there is one.
        tiled: whether scales of a byte lie in cuBLAS' tiles; else they lie in rows, and of two values in a byte the
            first is in its lower half.
    """

    qtype: str
    shape: tuple[int, ...]
    scale: str
    total: str | None = None
    tiled: bool = True


@dataclass(frozen=True)
class Format:
    """How a format is stored.

    Attributes:
        weight: safetensors' dtype of the weight.
        scales: those that its scales may have.
        qtype: its rows and columns as stored, its scales' shape and its rotation -> how it is packed; empty where they
            do not fit together.
        matrix: whether nothing but a matrix has this format.
        total: whether a scale of all is stored besides.
        tiled: see :class:`Quantised`.
    """

    weight: str
    scales: tuple[str, ...]
    qtype: Callable[[Sequence[int], Sequence[int], int], str]
    matrix: bool = True
    total: bool = False
    tiled: bool = True


def _is_one_or_rows(scale: Sequence[int], rows: int) -> bool:
    return tuple(scale) in ((), (1,), (1, 1), (rows,), (rows, 1))


def _float8(dtype: str) -> Callable[[Sequence[int], Sequence[int], int], str]:
    title = f"float8 {dtype.removeprefix('F8_')} with"

    def qtype(weight: Sequence[int], scale: Sequence[int], rotation: int) -> str:
        if rotation:
            return ""
        if math.prod(scale) == 1:
            return next(ours for ours, stored in SCALED_TYPES.items() if stored == dtype)
        if len(weight) == 2 and _is_one_or_rows(scale, weight[0]):
            return f"{title} row scales"
        blocks = tuple(-(-side // _BLOCK) for side in weight)
        return f"{title} block scales" if len(weight) == 2 and tuple(scale) == blocks else ""

    return qtype


def _int8(weight: Sequence[int], scale: Sequence[int], rotation: int) -> str:
    rows, columns = weight
    if not _is_one_or_rows(scale, rows) or (rotation and columns % rotation):
        return ""
    return f"int8 convrot {rotation}" if rotation else "int8"


def _int4(weight: Sequence[int], scale: Sequence[int], rotation: int) -> str:
    rows, columns = weight
    return "" if columns * 2 % rotation or not _is_one_or_rows(scale, rows) else f"int4 convrot {rotation}"


def _grouped(name: str, *, tiled: bool) -> Callable[[Sequence[int], Sequence[int], int], str]:
    kind = GROUPED_TYPES[name]

    def qtype(weight: Sequence[int], scale: Sequence[int], rotation: int) -> str:
        rows, columns = weight[0], weight[1] * kind.in_a_byte
        groups = kind.groups(columns)
        fits = math.prod(scale) == _tiles(rows, groups) * 512 if tiled else tuple(scale) == (rows, groups)
        return name if fits and not columns % kind.group and not rotation else ""

    return qtype


# as ComfyUI calls it
FORMATS: Mapping[str, Format] = {
    "float8_e4m3fn": Format("F8_E4M3", _NUMBERS, _float8("F8_E4M3"), matrix=False),
    "float8_e5m2": Format("F8_E5M2", _NUMBERS, _float8("F8_E5M2"), matrix=False),
    "int8_tensorwise": Format("I8", _NUMBERS, _int8),
    "convrot_w4a4": Format("I8", _NUMBERS, _int4),
    "mxfp8": Format("F8_E4M3", ("F8_E8M0", "U8"), _grouped("mxfp8", tiled=True)),
    "nvfp4": Format("U8", ("F8_E4M3", "U8"), _grouped("nvfp4", tiled=True), total=True),
    MODELOPT: Format("U8", ("F8_E4M3",), _grouped("nvfp4", tiled=False), total=True, tiled=False),
}
_UNSAID = {own.weight: name for name, own in FORMATS.items() if name.startswith("float8")}


def quantised(stored: Mapping[str, TensorInfo], layer: str, key: str, said: Said | None, where: str) -> Quantised:
    """A layer's weight.

    Args:
        stored: all tensors.
        layer: its name.
        key: the name of its scales.
        said: what its file says of it; its format is a key of ``FORMATS``.
        where: names the file in errors.

    Raises:
        FileError: the weight, or its scales, are not what is read here.
    """
    scale, weight = stored[key], stored.get(f"{layer}.weight")
    if weight is None:
        raise FileError(f"{where}{shown(key)} is the scale of a weight that is missing. Download it again.")
    name = said.format if said is not None else _UNSAID.get(weight.dtype)
    if name is None:
        raise FileError(
            f"{where}the weight of {shown(layer)} is {weight.dtype} with a scale of {scale.dtype}, of which the file "
            f"says nothing: only float8 is read so. {INSTEAD}"
        )
    own = FORMATS[name]
    qtype = _qtype(own, weight, scale, 0 if said is None else said.rotation)
    if not qtype:
        raise FileError(
            f"{where}the weight of {shown(layer)}, {weight.dtype} {list(weight.shape)}, and its scales, {scale.dtype} "
            f"{list(scale.shape)}, do not fit together as {name}. {INSTEAD}"
        )
    shape, total = weight.shape, None
    if qtype in GROUPED_TYPES:
        shape = (*shape[:-1], shape[-1] * GROUPED_TYPES[qtype].in_a_byte)
    if own.total:
        total = layer + TOTAL
        if total not in stored or math.prod(stored[total].shape) != 1 or stored[total].dtype not in _NUMBERS:
            raise FileError(f"{where}{shown(total)}, the scale of all of a weight, is missing. Download it again.")
    return Quantised(qtype, shape, key, total, own.tiled)


def _qtype(own: Format, weight: TensorInfo, scale: TensorInfo, rotation: int) -> str:
    """How a weight is packed; empty where it and its scales do not fit together."""
    if weight.dtype != own.weight or scale.dtype not in own.scales:
        return ""
    if not weight.shape or 0 in weight.shape or (own.matrix and len(weight.shape) != 2):
        return ""
    return own.qtype(weight.shape, scale.shape, rotation)


def packed(
    weight: Quantised, values: torch.Tensor, scales: torch.Tensor, total: torch.Tensor | None, where: str
) -> PackedTensor:
    """The weight of what is stored of it; raises FileError, which names the file ``where``."""
    import torch

    from ..packed import GroupedTensor, ScaledTensor

    if weight.qtype in SCALED_TYPES:
        number = float(scales)
        if not math.isfinite(number):
            raise FileError(f"{where!r} is damaged: the scale {shown(weight.scale)} is {number}. Download it again.")
        return ScaledTensor.of(values.clone(), number)
    kind, (rows, columns) = GROUPED_TYPES[weight.qtype], weight.shape
    if kind.scale == "F32":
        scales = scales.to(torch.float32)
        if kind.group:
            scales = scales.repeat_interleave(kind.group, dim=0)[:rows]
        scales = scales.reshape(-1, kind.groups(columns)).expand(rows, -1)
    elif weight.tiled:
        scales = _untiled(scales.view(torch.uint8).reshape(-1), rows, kind.groups(columns))
    else:
        values = (values << 4) | (values >> 4)
    return GroupedTensor.of(values, scales, weight.qtype, None if total is None else float(total))


def _tiles(rows: int, groups: int) -> int:
    return -(-rows // 128) * -(-groups // 4)


def _untiled(scales: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """Scales of one byte in the order in which cuBLAS wants them, in tiles of 128 rows by 4, as [rows, groups]."""
    high, wide = -(-rows // 128), -(-groups // 4)
    tiles = scales.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high * 128, wide * 4)[:rows, :groups]
