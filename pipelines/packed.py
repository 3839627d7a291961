"""Weights in GGUF's blocks: kept as they are in the file, and made dense for each use.

Dequantised is always in float32 and then cast. So the values are those of the format's own definition to the bit;
diffusers' functions by themselves compute with half-precision scales, off by up to 1e-3 of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import linear

from .errors import FileError
from .files.block_types import BLOCK_TYPES

# Values made dense at a time: several float32 copies of them exist for a moment. On the CPU they should stay in its
# cache (measured: three times as fast as whole layers); elsewhere each step costs some launches.
_STEP_CPU = 1 << 21
_STEP = 1 << 24


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A tensor in blocks of GGUF's.

    Attributes:
        raw: uint8 [rows, bytes of a row].
        qtype: ``"Q4_K"``, a key of ``BLOCK_TYPES``.
        shape: of the values; its last dimension is a row.
        dtype: what :meth:`dequantize` gives by default.
    """

    raw: torch.Tensor
    qtype: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, raw: torch.Tensor, qtype: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> PackedTensor:
        """Makes one of bytes in any shape; raises FileError where the installed diffusers does not read the type."""
        _unpacker(qtype)
        block = BLOCK_TYPES[qtype]
        return cls(raw.reshape(-1, shape[-1] // block.values * block.size), qtype, shape, dtype)

    @property
    def device(self) -> torch.device:
        return self.raw.device

    @property
    def scales(self) -> torch.Tensor:
        """The scales (and minimums) of all blocks, float16 [blocks, 1 or 2]: finite where the values are."""
        block = BLOCK_TYPES[self.qtype]
        return self.raw.reshape(-1, block.size)[:, slice(*block.scales)].view(torch.float16)

    def rows(self, start: int, stop: int) -> PackedTensor:
        """Rows of a matrix; shares its memory.

        Raises:
            ValueError: no matrix, or not that many rows.
        """
        if len(self.shape) != 2 or not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"no rows {start}:{stop} in {list(self.shape)}")
        return PackedTensor(self.raw[start:stop], self.qtype, (stop - start, self.shape[1]), self.dtype)

    def to(self, device: torch.device | str) -> PackedTensor:
        return PackedTensor(self.raw.to(device), self.qtype, self.shape, self.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The values, in new memory: float32, cast to the given dtype or else this tensor's."""
        unpack, block = _unpacker(self.qtype), BLOCK_TYPES[self.qtype]
        blocks = self.raw.reshape(-1, block.size)
        out = torch.empty(len(blocks), block.values, dtype=dtype or self.dtype, device=self.device)
        step = (_STEP_CPU if self.device.type == "cpu" else _STEP) // block.values
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            out[part] = unpack(blocks[part], block.values, block.size, dtype=torch.float32)
        return out.reshape(self.shape)


def dense(value: torch.Tensor | PackedTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A plain tensor of either, in the given dtype or else the stored one (float32 for a packed one)."""
    if isinstance(value, PackedTensor):
        return value.dequantize(dtype)
    return value if dtype is None else value.to(dtype)


def stacked(pieces: Sequence[torch.Tensor | PackedTensor]) -> torch.Tensor | PackedTensor:
    """One matrix of pieces that lie below each other; a packed one of packed pieces, which are of one type."""
    plain = [piece for piece in pieces if isinstance(piece, torch.Tensor)]
    if len(plain) == len(pieces):
        return torch.cat(plain)
    packed = [piece for piece in pieces if isinstance(piece, PackedTensor)]
    rows = sum(piece.shape[0] for piece in packed)
    first = packed[0]
    return PackedTensor(torch.cat([piece.raw for piece in packed]), first.qtype, (rows, first.shape[1]), first.dtype)


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
        self.register_buffer("packed", weight.raw)
        self.register_buffer("bias", None if bias is None else bias.detach())
        # follows `.to(dtype)` in the weight's stead
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=weight.device), persistent=False)

    @property
    def weight(self) -> PackedTensor:
        """The weight where and as it is now: ``device``, ``shape``, ``dtype``, ``dequantize()``."""
        return PackedTensor(self.packed, self.weight_qtype, (self.out_features, self.in_features), self._like.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.dequantize(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.weight_qtype}"


def _unpacker(qtype: str) -> Callable[..., torch.Tensor]:
    """diffusers' function for the blocks of a type: uint8 [blocks, size] -> ``dtype`` [blocks, values]."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType

    unpack = dequantize_functions.get(GGMLQuantizationType[qtype])
    if unpack is None:
        # IQ4_NL and IQ4_XS came with 0.36.0
        raise FileError(f"Tensors of GGUF type {qtype} are not read by the installed diffusers: update it.")
    return cast("Callable[..., torch.Tensor]", unpack)
