"""Files whose weights have scales beside them: ComfyUI's quantised files, and float8 with scales of rows or blocks.

A value is the small value times its scale, in float32. ComfyUI's scale has one of two names, and what is said of the
layers has three spellings:

* old: the scale is ``scale_weight``, and an empty tensor ``scaled_fp8`` marks the part;
* new: the scale is ``weight_scale``, and a tensor ``comfy_quant`` of each layer holds JSON, ``{"format": ...}``;
* the same JSON for all layers in the file's metadata, ``_quantization_metadata``: ``{"layers": {name: {...}}}``; the
  names may lack the part's prefix.

transformers' float8 has a scale for each 128 by 128 values, ``weight_scale_inv``, by which values are multiplied all
the same; others have one for each row. A float8 weight without a scale is a plain tensor where nothing is said of its
layer. Scales of activations (``scale_input``, ``input_scale``) are for products in float8: everything is computed in
the run's dtype here, and they are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import files
from ..errors import FileError
from ..words import shown
from .block_types import GROUPED_TYPES, SCALED_TYPES
from .header import FileStamp, Header, TensorInfo

if TYPE_CHECKING:
    import torch

    from .packed import PackedTensor

# as ComfyUI calls what is said of a layer -> dtypes of its weight, and of its scale
_FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_NUMBERS = ("F32", "BF16", "F16")
_SPECIAL = {
    "nvfp4": ("U8", ("F8_E4M3", "U8")),
    "mxfp8": ("F8_E4M3", ("F8_E8M0", "U8")),
    "int8_tensorwise": ("I8", _NUMBERS),
}
_SCALES = (".weight_scale", ".scale_weight", ".weight_scale_inv")
_TOTAL = ".weight_scale_2"
_INPUT_SCALES = (".input_scale", ".scale_input")
_MARKER = "scaled_fp8"
_QUANT = ".comfy_quant"
_BLOCK = 128
_MOST_STEPS = 32  # of a name, between its dots
_INSTEAD = "Get the bfloat16 file, a scaled float8 file or a GGUF file."
# ends of names that other tools' files have
_OTHERS = {
    ".absmax": "bitsandbytes", ".quant_map": "bitsandbytes", ".SCB": "bitsandbytes", ".wscales": "SVDQuant (nunchaku)",
    ".qweight": "GPTQ or AWQ", ".weight._data": "optimum-quanto", ".weight_packed": "compressed-tensors",
}  # fmt: skip


@dataclass(frozen=True)
class _Weight:
    """A weight with scales: how it is packed, its shape, the names of its scales; of one scale alone, what it is."""

    qtype: str
    shape: tuple[int, ...]
    scale: str
    total: str | None = None
    number: float | None = None


@dataclass(frozen=True)
class _Contents:
    header: Header
    weights: Mapping[str, _Weight]  # those that have scales
    paths: Mapping[str, Path]  # where each tensor lies


def read_header(path: Path) -> Header:
    """As :func:`..files.read_header`, for files of any kind: scaled weights have a dtype of ``SCALED_TYPES`` or
    ``GROUPED_TYPES``, and what describes them is not among the tensors.

    Raises:
        FileError: likewise; or weights are quantised in a way that is not read, or a scale is missing or damaged.
    """
    return _contents((FileStamp.of(path),)).header


def read_infos(paths: Sequence[Path]) -> Mapping[str, TensorInfo]:
    """The tensors of files that belong together, likewise: a weight and its scale may lie in different ones."""
    return _contents(tuple(map(FileStamp.of, paths))).header.tensors


def read_tensors(
    path: Path | Sequence[Path], names: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """As :func:`..files.read_tensors`, of one file or several; weights with scales are packed, and never maps."""
    paths = [path] if isinstance(path, Path) else path
    contents = _contents(tuple(map(FileStamp.of, paths)))
    for own in paths:
        for name, value in files.read_tensors(own, [name for name in names if contents.paths.get(name) == own]):
            weight = contents.weights.get(name)
            yield name, value if weight is None else _packed(contents, weight, cast("torch.Tensor", value))


def _packed(contents: _Contents, weight: _Weight, value: torch.Tensor) -> PackedTensor:
    import torch

    from .packed import GroupedTensor, ScaledTensor, unblocked

    if weight.number is not None:
        return ScaledTensor.of(value.clone(), weight.number)
    scales = _read(contents, weight.scale)
    kind, (rows, columns) = GROUPED_TYPES[weight.qtype], weight.shape
    if kind.scale != "F32":
        total = None if weight.total is None else float(_read(contents, weight.total))
        tiles = unblocked(scales.view(torch.uint8).reshape(-1), rows, kind.groups(columns))
        return GroupedTensor.of(value, tiles, weight.qtype, total)
    scales = scales.to(torch.float32)
    if kind.group:
        scales = scales.repeat_interleave(_BLOCK, dim=0)[:rows]
    return GroupedTensor.of(value, scales.reshape(-1, kind.groups(columns)).expand(rows, -1), weight.qtype)


def _read(contents: _Contents, key: str) -> torch.Tensor:
    ((_, value),) = files.read_tensors(contents.paths[key], [key])
    return cast("torch.Tensor", value)


# the scales are many small tensors, and a file is asked several times before a run
@lru_cache(maxsize=16)
def _contents(stamps: tuple[FileStamp, ...]) -> _Contents:
    headers = [files.read_header(stamp.path) for stamp in stamps]
    stored = {key: info for header in headers for key, info in header.tensors.items()}
    paths = {key: header.path for header in headers for key in header.tensors}
    formats = {layer: kind for header in headers for layer, kind in _described(header, stored).items()}
    _check_others(stored, paths, formats)
    scale_keys: dict[str, str] = {}
    for key in stored:
        for ending in _SCALES:
            if key.endswith(ending):
                scale_keys[key.removesuffix(ending)] = key
    for layer in formats:
        if layer not in scale_keys:
            name = paths.get(f"{layer}.weight", stamps[0].path).name
            raise FileError(f"{name!r} is damaged: the scale of {shown(layer)} is missing. Download it again.")
    found = {
        f"{layer}.weight": _weight(stored, layer, key, formats.get(layer), f"{paths[key].name!r}: ")
        for layer, key in scale_keys.items()
    }
    contents = _Contents(Header(stamps[0].path, stored, headers[0].metadata), found, paths)
    weights = {name: _with_number(contents, weight) for name, weight in found.items()}
    surplus = {layer + ending for layer in scale_keys for ending in (*_INPUT_SCALES, _QUANT, _TOTAL)}
    surplus |= {*scale_keys.values()}
    tensors: dict[str, TensorInfo] = {}
    for key, info in stored.items():
        if key in surplus or key.rpartition(".")[2] == _MARKER:
            continue
        tensors[key] = TensorInfo(weights[key].qtype, weights[key].shape) if key in weights else info
    return _Contents(Header(stamps[0].path, tensors, headers[0].metadata), weights, paths)


def _with_number(contents: _Contents, weight: _Weight) -> _Weight:
    """With the scale of a whole weight read; raises FileError where it is none."""
    if weight.qtype not in SCALED_TYPES:
        return weight
    number = float(_read(contents, weight.scale))
    if not math.isfinite(number):
        name = contents.paths[weight.scale].name
        raise FileError(f"{name!r} is damaged: the scale {shown(weight.scale)} is {number}. Download it again.")
    return _Weight(weight.qtype, weight.shape, weight.scale, number=number)


def _check_others(stored: Mapping[str, TensorInfo], paths: Mapping[str, Path], formats: Mapping[str, str]) -> None:
    """Raises FileError where another tool quantised a file, in its own way."""
    for key in stored:
        tool = next((tool for ending, tool in _OTHERS.items() if key.endswith(ending)), None)
        if tool is None and key.endswith(_TOTAL) and formats.get(key.removesuffix(_TOTAL)) != "nvfp4":
            tool = "nvfp4 of another tool than ComfyUI's"
        if tool is not None:
            raise FileError(
                f"{paths[key].name!r} holds weights quantised by {tool} (the first is {shown(key)}), which are not "
                f"read. {_INSTEAD}"
            )


def _weight(stored: Mapping[str, TensorInfo], layer: str, key: str, described: str | None, where: str) -> _Weight:
    """A layer's weight; raises FileError where it, or its scale, is not what is read here."""
    scale, weight = stored[key], stored.get(f"{layer}.weight")
    if weight is None:
        raise FileError(f"{where}{shown(key)} is the scale of a weight that is missing. Download it again.")
    expected = _SPECIAL[described][0] if described in _SPECIAL else _FLOAT8.get(described or "", weight.dtype)
    if expected != weight.dtype:
        raise FileError(f"{where}{shown(layer)} is said to be {described}, and its weight is {weight.dtype}.")
    if described in _SPECIAL:
        return _special(stored, layer, key, described, where)
    if weight.dtype not in SCALED_TYPES.values() or scale.dtype not in _NUMBERS:
        raise FileError(
            f"{where}the weight of {shown(layer)} is {weight.dtype} with a scale of {scale.dtype}, which is not read: "
            f"only float8 with a float32 scale is. {_INSTEAD}"
        )
    if math.prod(scale.shape) == 1:
        (qtype,) = (ours for ours, dtype in SCALED_TYPES.items() if dtype == weight.dtype)
        return _Weight(qtype, weight.shape, key)
    title = f"float8 {weight.dtype.removeprefix('F8_')} with"
    if len(weight.shape) == 2 and scale.shape in (weight.shape[:1], (weight.shape[0], 1)):
        return _Weight(f"{title} row scales", weight.shape, key)
    if len(weight.shape) == 2 and scale.shape == tuple(-(-side // _BLOCK) for side in weight.shape):
        return _Weight(f"{title} block scales", weight.shape, key)
    raise _odd_shape(where, key, scale)


def _special(stored: Mapping[str, TensorInfo], layer: str, key: str, described: str, where: str) -> _Weight:
    """The same of ComfyUI's other formats."""
    scale, weight, total = stored[key], stored[f"{layer}.weight"], None
    if scale.dtype not in _SPECIAL[described][1]:
        raise FileError(f"{where}the scales of {shown(layer)}, {described}, are {scale.dtype}. Download it again.")
    if len(weight.shape) != 2:
        raise FileError(f"{where}the weight of {shown(layer)}, {described}, is no matrix. {_INSTEAD}")
    rows, columns = weight.shape
    if described == "int8_tensorwise":
        if scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise _odd_shape(where, key, scale)
        return _Weight("int8", weight.shape, key)
    if described == "nvfp4":
        columns, total = columns * 2, layer + _TOTAL
        if total not in stored or math.prod(stored[total].shape) != 1 or stored[total].dtype not in _NUMBERS:
            raise FileError(f"{where}{shown(total)}, the scale of all of a weight, is missing. Download it again.")
    kind = GROUPED_TYPES[described]
    if columns % kind.group or math.prod(scale.shape) != -(-rows // 128) * -(-kind.groups(columns) // 4) * 512:
        raise _odd_shape(where, key, scale)
    return _Weight(described, (rows, columns), key, total)


def _odd_shape(where: str, key: str, scale: TensorInfo) -> FileError:
    return FileError(
        f"{where}{shown(key)} has shape {list(scale.shape)}, which does not fit its weight: one scale for a weight is "
        f"read, one for each row, one for each 128 by 128 values, and those of nvfp4 and mxfp8. {_INSTEAD}"
    )


def _described(header: Header, stored: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Layer -> format, of those of which something is said; raises FileError where a format is not read."""
    name, weights = header.path.name, [key for key in stored if key.endswith(".weight")]
    said: dict[str, Any] = {}
    layers = _layers(header)
    endings = _by_ending(weights if layers else [])
    for layer, entry in layers.items():
        # pruned files keep what was said of the layers that are gone
        for key in endings(f"{layer}.weight"):
            said[key.removesuffix(".weight")] = entry
    keys = [key for key, info in header.tensors.items() if key.endswith(_QUANT) and info.dtype == "U8"]
    for key, value in files.read_tensors(header.path, keys) if keys else ():
        text = bytes(cast("torch.Tensor", value).reshape(-1).numpy())
        said[key.removesuffix(_QUANT)] = _object(text, f"{name!r} is damaged: {shown(key)}")
    formats: dict[str, str] = {}
    for layer, entry in said.items():
        formats[layer] = kind = _format(entry)
        if kind not in _FLOAT8 and kind not in _SPECIAL:
            raise FileError(
                f"{name!r} holds weights in {kind[:60]} (the first is {shown(layer)}), which is not read. {_INSTEAD}"
            )
    return formats


def _format(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    parameters = entry.get("params")
    turned = entry.get("convrot", parameters.get("convrot") if isinstance(parameters, dict) else None)
    return f"{entry.get('format')}{' with convrot' if turned else ''}"


def _by_ending(weights: Sequence[str]) -> Callable[[str], list[str]]:
    """Finds a name, or those that end with it behind a dot; with a table, since there may be many of both."""
    table: dict[str, list[str]] = {}
    for weight in weights:
        rest = weight
        for _ in range(_MOST_STEPS):
            table.setdefault(rest, []).append(weight)
            rest = rest.partition(".")[2]
            if not rest:
                break
    return lambda name: [name] if name in table.get(name, ()) else table.get(name, [])


def _layers(header: Header) -> dict[str, Any]:
    """What the metadata say of layers."""
    text = header.metadata.get("_quantization_metadata")
    where = f"{header.path.name!r} is damaged: its _quantization_metadata"
    layers = {} if text is None else _object(text, where).get("layers")
    if not isinstance(layers, dict):
        raise FileError(f"{where} names no layers.")
    return layers


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not valid JSON. Download it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{where} is no JSON object. Download it again.")
    return value
