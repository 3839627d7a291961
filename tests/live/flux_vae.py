"""A full-width FLUX.1 autoencoder with random weights, as the file ``ae.safetensors`` that ComfyUI users have.

The names and shapes are those of the released file: 244 tensors, 83,819,683 values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

_WIDTHS = (128, 256, 512, 512)
_LATENT = 16


def make_ae(path: Path, seed: int = 0) -> Path:
    """Writes the file in bfloat16 (168 MB)."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in (*_encoder(), *_decoder()):
        if len(shape) == 4:
            # keeps the signal's size through the layers
            spread = (shape[1] * shape[2] * shape[3]) ** -0.5
            tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread
        else:
            tensors[f"{name}.weight"] = torch.ones(shape)
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.02
    assert len(tensors) == 244
    assert sum(value.numel() for value in tensors.values()) == 83_819_683
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.bfloat16) for name, value in tensors.items()}, path)
    return path


Layer = tuple[str, tuple[int, ...]]


def _block(name: str, inside: int, outside: int) -> Iterator[Layer]:
    yield f"{name}.norm1", (inside,)
    yield f"{name}.conv1", (outside, inside, 3, 3)
    yield f"{name}.norm2", (outside,)
    yield f"{name}.conv2", (outside, outside, 3, 3)
    if inside != outside:
        yield f"{name}.nin_shortcut", (outside, inside, 1, 1)


def _middle(name: str) -> Iterator[Layer]:
    width = _WIDTHS[-1]
    yield from _block(f"{name}.mid.block_1", width, width)
    yield f"{name}.mid.attn_1.norm", (width,)
    for part in ("q", "k", "v", "proj_out"):
        yield f"{name}.mid.attn_1.{part}", (width, width, 1, 1)
    yield from _block(f"{name}.mid.block_2", width, width)
    yield f"{name}.norm_out", (width if name == "encoder" else _WIDTHS[0],)


def _encoder() -> Iterator[Layer]:
    yield "encoder.conv_in", (_WIDTHS[0], 3, 3, 3)
    inside = _WIDTHS[0]
    for level, width in enumerate(_WIDTHS):
        for index in range(2):
            yield from _block(f"encoder.down.{level}.block.{index}", inside, width)
            inside = width
        if level < len(_WIDTHS) - 1:
            yield f"encoder.down.{level}.downsample.conv", (width, width, 3, 3)
    yield from _middle("encoder")
    yield "encoder.conv_out", (2 * _LATENT, _WIDTHS[-1], 3, 3)


def _decoder() -> Iterator[Layer]:
    yield "decoder.conv_in", (_WIDTHS[-1], _LATENT, 3, 3)
    inside = _WIDTHS[-1]
    for level, width in reversed(list(enumerate(_WIDTHS))):
        for index in range(3):
            yield from _block(f"decoder.up.{level}.block.{index}", inside, width)
            inside = width
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", (width, width, 3, 3)
    yield from _middle("decoder")
    yield "decoder.conv_out", (3, _WIDTHS[0], 3, 3)
