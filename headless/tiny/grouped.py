"""Tiny files whose weights have scales of rows, blocks or groups, as ComfyUI, transformers and ModelOpt write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from .containers import BLOCKS, METADATA
from .files import Tensors, write_tensors

Grouped = Literal[
    "nvfp4", "mxfp8", "int8", "int8 rows", "int8 convrot", "int4 convrot", "rows", "blocks", "modelopt"
]  # fmt: skip
ROTATION = 16  # columns that are turned together, few enough for every tiny model
COMFYUI_ROTATION = 256  # what ComfyUI takes where a file says none


def write_grouped(
    path: Path,
    plain: Path,
    kind: Grouped,
    spelling: Literal["new", "metadata"] = "new",
    rotation: int = ROTATION,
) -> Path:
    """A file's copy with weights in its blocks of which groups of values have a scale; returns the path.

    Args:
        path: the file.
        plain: a safetensors file of one part.
        kind: ``blocks`` as transformers writes them, ``rows`` as others do, ``modelopt`` as ModelOpt writes nvfp4 into
            a folder, whose configuration says so; all others as ComfyUI does.
        spelling: of what ComfyUI's files say of their layers.
        rotation: columns that ``convrot`` turns together; matrices that they do not divide are not turned, and those of
            four bits are left as they are. ComfyUI's own is not said.
    """
    tensors, described = load_file(plain), {}
    for name in [name for name in tensors if tensors[name].ndim == 2 and any(block in name for block in BLOCKS)]:
        if tensors[name].shape[1] % 32:
            continue
        layer, value = name.removesuffix(".weight"), tensors[name].float()
        turns = kind.endswith("convrot")
        if turns and value.shape[1] % rotation:
            if kind == "int4 convrot":
                continue
            own, said = _int8(value, rows=True)
        elif turns:
            own, said = _TURNED[kind](_turned(value, rotation))
            said |= {} if rotation == COMFYUI_ROTATION else {"convrot_groupsize": rotation}
        else:
            own, said = _GROUPED[kind](value)
        tensors |= {f"{layer}.{leaf}": part for leaf, part in own.items()}
        if said:
            described[layer] = said
    metadata = dict(METADATA)
    if spelling == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": described})
    else:
        for layer, said in described.items():
            text = bytearray(json.dumps(said).encode())
            tensors[f"{layer}.comfy_quant"] = torch.frombuffer(text, dtype=torch.uint8)
    return write_tensors(path, tensors, metadata)


def _nvfp4(value: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    scales, total = _nvfp4_scales(value)
    groups = value.reshape(len(value), -1, 16)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    scaled = groups / (scales.float() * total).clamp(min=1e-30).unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1) + 8 * (scaled < 0)
    codes = codes.reshape(len(value), -1, 2).to(torch.uint8)
    packed = codes[..., 0] * 16 + codes[..., 1]
    return {"weight": packed, "weight_scale": _tiled(scales), "weight_scale_2": total}, {"format": "nvfp4"}


def _nvfp4_scales(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 [rows, groups], and the one of all."""
    total = value.abs().max() / (448 * 6)
    return (value.reshape(len(value), -1, 16).abs().amax(-1) / 6 / total).to(torch.float8_e4m3fn), total


def _mxfp8(value: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    groups = value.reshape(len(value), -1, 32)
    exponents = torch.ceil(torch.log2(groups.abs().amax(-1).clamp(min=2.0**-100) / 448)).to(torch.int32)
    stored = (groups / torch.exp2(exponents.float()).unsqueeze(-1)).to(torch.float8_e4m3fn).reshape(value.shape)
    return {"weight": stored, "weight_scale": _tiled((exponents + 127).to(torch.uint8))}, {"format": "mxfp8"}


def _int8(value: torch.Tensor, rows: bool) -> tuple[Tensors, dict[str, object]]:
    largest = value.abs().amax(1, keepdim=True) if rows else value.abs().max()
    scale = largest.clamp(min=1e-12) / 127
    return {"weight": (value / scale).round().to(torch.int8), "weight_scale": scale}, {"format": "int8_tensorwise"}


def _modelopt(value: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    stored, _ = _nvfp4(value)
    scales, _ = _nvfp4_scales(value)
    weight = stored["weight"]
    return stored | {"weight": weight % 16 * 16 + weight // 16, "weight_scale": scales}, {}


def _int8_turned(turned: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    stored, said = _int8(turned, rows=True)
    return stored, said | {"convrot": True}


def _int4_turned(turned: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    scale = turned.abs().amax(1).clamp(min=1e-10) / 7
    codes = (turned / scale[:, None]).round().to(torch.int8) & 15
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.int8)
    return {"weight": packed, "weight_scale": scale}, {"format": "convrot_w4a4"}


def _turned(value: torch.Tensor, rotation: int) -> torch.Tensor:
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    matrix = four
    while len(matrix) < rotation:
        matrix = torch.kron(matrix, four)
    return (value.reshape(-1, rotation) @ matrix.T).reshape(value.shape)


def _float8_rows(value: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    scale = (value.abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)
    return {"weight": (value / scale.float()).to(torch.float8_e4m3fn), "weight_scale": scale}, {}


def _float8_blocks(value: torch.Tensor) -> tuple[Tensors, dict[str, object]]:
    high, wide = (-(-side // 128) for side in value.shape)
    scale = torch.empty(high, wide)
    stored = torch.empty(value.shape, dtype=torch.float8_e4m3fn)
    for row in range(high):
        for column in range(wide):
            place = slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128)
            scale[row, column] = value[place].abs().max() / 448
            stored[place] = (value[place] / scale[row, column]).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scale}, {}


def _tiled(scales: torch.Tensor) -> torch.Tensor:
    """Scales of one byte in the order that cuBLAS documents: tiles of 128 rows by 4; of rows 0, 32, 64, 96, 1, ..."""
    rows, columns = scales.shape
    high, wide = -(-rows // 128), -(-columns // 4)
    tiled = torch.zeros(high * wide * 512, dtype=torch.uint8)
    raw = scales.view(torch.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = (row // 128) * wide + column // 4
            tiled[tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4] = raw[row, column]
    return tiled.view(scales.dtype).reshape(high * 128, wide * 4)


_GROUPED: Mapping[str, Callable[[torch.Tensor], tuple[Tensors, dict[str, object]]]] = {
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "int8": lambda value: _int8(value, rows=False),
    "int8 rows": lambda value: _int8(value, rows=True),
    "modelopt": _modelopt,
    "rows": _float8_rows,
    "blocks": _float8_blocks,
}
_TURNED: Mapping[str, Callable[[torch.Tensor], tuple[Tensors, dict[str, object]]]] = {
    "int8 convrot": _int8_turned,
    "int4 convrot": _int4_turned,
}
