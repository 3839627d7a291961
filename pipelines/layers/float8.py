"""Weights stored as float8_e4m3fn and cast at each use: half of bfloat16's memory, no scales, no library.

Which layers: every Linear but the input embedder and whatever has "norm" in its name, as diffusers'
``enable_layerwise_casting`` chooses; biases stay in the run's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import linear

from ..errors import FileError

NAME = "fp8_e4m3fn"
_DTYPE = torch.float8_e4m3fn
_KEPT = ("norm", "x_embedder", "patch_embed", "pos_embed")  # diffusers models/modeling_utils.py


class Storage:
    """See :class:`.holding.Holding`."""

    def takes(self, layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and not any(part in name for part in _KEPT)

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return torch.Size(shape).numel()

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        highest, limit = float(weight.abs().max()), torch.finfo(_DTYPE).max
        if highest > limit:
            raise FileError(
                f"{where}: '{name}.weight' has a value of {highest:g}, and {NAME} ends at {limit:g}. Choose another "
                "quantization."
            )
        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        setattr(parent, leaf, Float8Linear(weight, cast("nn.Linear", parent.get_submodule(leaf)).bias, weight.dtype))


@dataclass(frozen=True, eq=False)
class Float8Weight:
    """A stored weight; ``dtype`` is what :meth:`dequantize` gives by default."""

    raw: torch.Tensor
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.raw.device

    @property
    def shape(self) -> torch.Size:
        return self.raw.shape

    def rows(self, start: int, stop: int) -> Float8Weight:
        """Rows of it; shares its memory."""
        return Float8Weight(self.raw[start:stop], self.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.raw.to(dtype or self.dtype)


class Float8Linear(nn.Module):
    """A Linear whose weight is stored in float8.

    It has buffers only, so that ``.to(dtype)`` is the one thing that must not be called on it.

    Args:
        weight: [out, in], any float dtype, no value beyond its largest.
        bias: [out], or None.
        dtype: what the layer runs in, for those who ask its weight.
    """

    raw: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_qtype = NAME
        self._dtype = dtype
        self.register_buffer("raw", weight.to(_DTYPE))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> Float8Weight:
        return Float8Weight(self.raw, self._dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.raw.to(x.dtype), self.bias)
