"""A layer whose weight stays as its file packs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from ..files.packed import PackedTensor


class PackedLinear(nn.Module):
    """A Linear whose weight stays packed; each call makes it dense in the dtype of its input.

    It has buffers only: ``.to(device)`` moves them, ``.to(dtype)`` casts the bias and leaves the bytes alone, and
    nothing takes them for something to train or to quantise.

    Args:
        weight: [out, in].
        bias: [out], or None.
        dtype: what the layer runs in, for those who ask its weight.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None
    _like: torch.Tensor

    def __init__(self, weight: PackedTensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_qtype = weight.qtype
        # what is not bytes; the bytes are a buffer, so that they move with the module
        self._form = weight.to("meta")
        self.register_buffer("packed", weight.raw)
        self.register_buffer("bias", None if bias is None else bias.detach())
        # follows `.to(dtype)` in the weight's stead
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=weight.device), persistent=False)

    @property
    def weight(self) -> PackedTensor:
        """The weight where and as it is now: ``device``, ``shape``, ``dtype``, ``dequantize()``."""
        return replace(self._form, raw=self.packed, dtype=self._like.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.dequantize(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.weight_qtype}"
