"""Weights of 2 to 7 bits in groups of 64, AI Toolkit's ``uint2`` to ``uint7``: its values to the bit, no library.

A group's values are ``(code - zero) * scale``. Everything is computed in the weight's own dtype, and rounded as AI
Toolkit rounds::

    low, high = min(group, 0), max(group, 0)
    scale     = max((high - low) / (2**bits - 1), 2**-23)
    zero      = clamp(-round(low / scale))
    code      = clamp(round(value * (1 / scale)) + zero)

Source: AI Toolkit toolkit/util/uintx_quant.py, which does what torchao 0.10.0's ``UIntXWeightOnlyConfig`` did: AI
Toolkit called that until 27 July 2026. Its ``uint8`` changes no layer and is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import linear

GROUP = 64
NAMES = {f"uint{bits}": bits for bits in range(2, 8)}
_SMALLEST_SCALE = torch.finfo(torch.float32).eps


class UIntX:
    """See :class:`.holding.Holding`.

    Args:
        bits: of a value.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def takes(self, layer: nn.Module, name: str) -> bool:
        # AI Toolkit leaves a layer whose rows are no whole groups as it is
        return isinstance(layer, nn.Linear) and layer.in_features % GROUP == 0

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        rows, columns = shape
        # a scale, and a zero of one byte, for each group
        return rows * columns * self._bits // 8 + rows * (columns // GROUP) * (dtype.itemsize + 1)

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        bias = cast("nn.Linear", parent.get_submodule(leaf)).bias
        setattr(parent, leaf, UIntXLinear(quantize(weight, self._bits), bias))


@dataclass(frozen=True, eq=False)
class UIntXWeight:
    """A quantised weight.

    Attributes:
        packed: [out, in * bits / 8], see :func:`_pack`.
        scale: [out, in / 64], in the weight's dtype.
        zero: [out, in / 64], the code of 0.
        bits: of a code.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.scale), self.scale.shape[1] * GROUP))

    def rows(self, start: int, stop: int) -> UIntXWeight:
        """Rows of it; shares its memory."""
        return UIntXWeight(self.packed[start:stop], self.scale[start:stop], self.zero[start:stop], self.bits)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[out, in]; computed in the weight's own dtype, whatever it is asked for in."""
        codes = _unpack(self.packed, self.bits, self.shape[1]).unflatten(1, (-1, GROUP))
        # in place: no second tensor of its size. Codes and their differences are exact in any dtype
        values = codes.to(self.dtype).sub_(self.zero[..., None]).mul_(self.scale[..., None])
        return values.flatten(1).to(dtype or self.dtype)


class UIntXLinear(nn.Module):
    """A Linear whose weight is quantised so; each call makes it dense.

    It has buffers only, so that ``.to(dtype)`` is the one thing that must not be called on it.

    Args:
        weight: [out, in].
        bias: [out], or None.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: UIntXWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_qtype = f"uint{weight.bits}"
        self._bits = weight.bits
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero", weight.zero)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> UIntXWeight:
        return UIntXWeight(self.packed, self.scale, self.zero, self._bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.dequantize(x.dtype), self.bias)


def quantize(weight: torch.Tensor, bits: int) -> UIntXWeight:
    """A weight [out, in], of which ``in`` is a multiple of 64, in codes of ``bits`` bits."""
    top = 2**bits - 1
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = ((high - low) / top).clamp(min=_SMALLEST_SCALE)
    zero = (low / scale).round().neg().clamp(0, top)
    codes = (groups * (1.0 / scale)[..., None]).round_().add_(zero[..., None]).clamp_(0, top)
    # in float16 1 / scale may be infinite, and 0 times that is NaN, of which AI Toolkit's cast to bytes makes 0
    codes.nan_to_num_(0)
    return UIntXWeight(_pack(codes.flatten(1).to(torch.uint8), bits), scale, zero.to(torch.uint8), bits)


def _shards(bits: int) -> list[int]:
    """The powers of two that a number of bits is the sum of: 7 is 4, 2 and 1."""
    return [width for width in (4, 2, 1) if bits & width]


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [out, in] in in * bits / 8 bytes a row.

    A row's codes are split into shards of 4, 2 or 1 bits, from the lowest. A shard has n bytes, and byte i of them
    holds the bits of columns i, i + n, i + 2n and so on, from its lowest: whole ranges of columns are packed at once.
    """
    shards: list[torch.Tensor] = []
    below = 0
    for width in _shards(bits):
        shard = (codes >> below) & (2**width - 1)
        first, *others = shard.chunk(8 // width, dim=1)
        packed = first.clone()
        for place, values in enumerate(others, 1):
            packed |= values << place * width
        shards.append(packed)
        below += width
    return torch.cat(shards, dim=1)


def _unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The codes of :func:`_pack`."""
    codes = packed.new_zeros(len(packed), columns)
    below = 0
    for width, shard in zip(_shards(bits), packed.split([columns * w // 8 for w in _shards(bits)], dim=1), strict=True):
        for place, values in enumerate(codes.chunk(8 // width, dim=1)):
            values |= ((shard >> place * width) & (2**width - 1)) << below
        below += width
    return codes
