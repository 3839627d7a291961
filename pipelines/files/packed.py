"""Weights kept as their file packs them, GGUF's blocks, scaled float8 or small values in groups, and made dense for
each use.

Dequantised is always in float32 and then cast. So the values are those of the format's own definition to the bit:
diffusers' functions for GGUF by themselves compute with half-precision scales, off by up to 1e-3 of a value, and
ComfyUI's eager dequantisation of float8 rounds the scale to the run's dtype before it multiplies, in bfloat16 off by up
to 2e-3 of a value (its float8 matrix products take the scale in float32, as here).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch

from ..errors import FileError
from .block_types import BLOCK_TYPES, GROUPED_TYPES, SCALED_TYPES
from .small_values import FLOAT8, float32_values, largest, small_values, turned_back

# Values made dense at a time: several float32 copies of them exist for a moment. On the CPU they should stay in its
# cache (measured: three times as fast as whole layers); elsewhere each step costs some launches.
_STEP_CPU = 1 << 21
_STEP = 1 << 24
_LARGEST_STEP = 8192  # above what any block type of GGUF multiplies a scale by (Q6_K: 128 times 32)


@dataclass(frozen=True, eq=False)
class PackedTensor(ABC):
    """A tensor whose values are not stored one by one in a dtype that torch computes in.

    Attributes:
        raw: uint8 [rows, bytes of a row].
        qtype: how it is packed, see :attr:`.files.header.TensorInfo.dtype`.
        shape: of the values; its last dimension is a row.
        dtype: what :meth:`dequantize` gives by default.
    """

    raw: torch.Tensor
    qtype: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.raw.device

    @abstractmethod
    def largest(self) -> float:
        """No value is larger than this, either sign; NaN or Inf where a value is, or may be."""

    @abstractmethod
    def _write(self, out: torch.Tensor, start: int, stop: int) -> None:
        """Writes these rows' values, made in float32, into ``out`` [rows, values of a row] of any float dtype."""

    def rows(self, start: int, stop: int) -> Self:
        """Rows of a matrix; shares its memory.

        Raises:
            ValueError: no matrix, or not that many rows.
        """
        if len(self.shape) != 2 or not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"no rows {start}:{stop} in {list(self.shape)}")
        return replace(self, raw=self.raw[start:stop], shape=(stop - start, self.shape[1]))

    def reordered(self, order: torch.Tensor) -> Self:
        """The rows of a matrix in another order, copied.

        Raises:
            ValueError: no matrix.
        """
        if len(self.shape) != 2:
            raise ValueError(f"no rows in {list(self.shape)}")
        return replace(self, raw=self.raw[order])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, raw=self.raw.to(device))

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The values, in new memory: float32, cast to the given dtype or else this tensor's."""
        out = torch.empty(len(self.raw), self.shape[-1], dtype=dtype or self.dtype, device=self.device)
        step = max(1, (_STEP_CPU if self.device.type == "cpu" else _STEP) // self.shape[-1])
        for start in range(0, len(out), step):
            stop = min(start + step, len(out))
            self._write(out[start:stop], start, stop)
        return out.reshape(self.shape)


class BlockTensor(PackedTensor):
    """A tensor in blocks of GGUF's; ``qtype`` is a key of ``BLOCK_TYPES``."""

    @classmethod
    def of(
        cls, raw: torch.Tensor, qtype: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> BlockTensor:
        """Makes one of bytes in any shape; raises FileError where the installed diffusers does not read the type."""
        _unpacker(qtype)
        block = BLOCK_TYPES[qtype]
        return cls(raw.reshape(-1, shape[-1] // block.values * block.size), qtype, shape, dtype)

    @property
    def scales(self) -> torch.Tensor:
        """The scales (and minimums) of all blocks, float16 [blocks, 1 or 2]: finite where the values are."""
        block = BLOCK_TYPES[self.qtype]
        return self.raw.reshape(-1, block.size)[:, slice(*block.scales)].view(torch.float16)

    def largest(self) -> float:
        # measured on one core: all values of a 2B model take 7 to 23 s, by type, their scales 0.1 to 0.5 s
        return float(self.scales.abs().max()) * _LARGEST_STEP

    def _write(self, out: torch.Tensor, start: int, stop: int) -> None:
        block = BLOCK_TYPES[self.qtype]
        blocks = self.raw[start:stop].reshape(-1, block.size)
        values = _unpacker(self.qtype)(blocks, block.values, block.size, dtype=torch.float32)
        out.copy_(values.reshape(out.shape))


@dataclass(frozen=True, eq=False)
class ScaledTensor(PackedTensor):
    """A tensor of float8 values, each times a float32 scale.

    The scales are numbers, not a tensor: what moves and casts a module must not round them.

    Attributes:
        scales: how many rows of ``raw`` have which scale, from the first row on.
    """

    scales: tuple[tuple[int, float], ...] = field(kw_only=True)

    @classmethod
    def of(cls, values: torch.Tensor, scale: float, dtype: torch.dtype = torch.float32) -> ScaledTensor:
        """Makes one of a float8 tensor of one or more dimensions; shares its memory."""
        raw = values.reshape(-1, values.shape[-1]).view(torch.uint8)
        (qtype,) = (name for name, stored in SCALED_TYPES.items() if FLOAT8[stored] == values.dtype)
        return cls(raw, qtype, tuple(values.shape), dtype, scales=((len(raw), scale),))

    def rows(self, start: int, stop: int) -> Self:
        return replace(super().rows(start, stop), scales=self._runs(start, stop))

    def reordered(self, order: torch.Tensor) -> Self:
        values = [scale for count, scale in self.scales for _ in range(count)]
        return replace(super().reordered(order), scales=tuple((1, values[row]) for row in order.tolist()))

    def largest(self) -> float:
        found, first = [0.0], 0
        for count, scale in self.scales:
            part, first = self.raw[first : first + count], first + count
            found.append(largest(part, SCALED_TYPES[self.qtype]) * scale)
        # carries NaN with it, unlike Python's
        return float(torch.tensor(found).abs().max())

    def _write(self, out: torch.Tensor, start: int, stop: int) -> None:
        values = small_values(self.raw[start:stop], SCALED_TYPES[self.qtype])
        first = 0
        for count, scale in self._runs(start, stop):
            part = slice(first, first + count)
            torch.mul(values[part], scale, out=out[part])
            first += count

    def _runs(self, start: int, stop: int) -> tuple[tuple[int, float], ...]:
        """``scales`` of these rows."""
        runs, first = [], 0
        for count, scale in self.scales:
            kept = min(stop, first + count) - max(start, first)
            if kept > 0:
                runs.append((kept, scale))
            first += count
        return tuple(runs)


class GroupedTensor(PackedTensor):
    """A matrix of small values in groups; ``qtype`` is a key of ``GROUPED_TYPES``, whose bytes each row of ``raw`` has.

    The scales lie in the rows that they are of, so that rows can be taken, put together and moved like GGUF's.
    """

    @classmethod
    def of(
        cls,
        values: torch.Tensor,
        scales: torch.Tensor,
        qtype: str,
        total: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> GroupedTensor:
        """Makes one of copies.

        Args:
            values: [rows, bytes of a row's values].
            scales: [rows, groups], float32, or of one byte each.
            qtype: see the class.
            total: the scale of all, where the type has one.
            dtype: see :class:`PackedTensor`.
        """
        kind, rows = GROUPED_TYPES[qtype], len(values)
        columns = values.shape[1] * kind.in_a_byte
        parts = [values.view(torch.uint8), scales.contiguous().view(torch.uint8)]
        if kind.total:
            parts.append(torch.tensor([total], dtype=torch.float32).view(torch.uint8).expand(rows, 4))
        return cls(torch.cat(parts, dim=1), qtype, (rows, columns), dtype)

    def largest(self) -> float:
        kind = GROUPED_TYPES[self.qtype]
        found, step = [0.0], max(1, _STEP_CPU // self.shape[1])
        for start in range(0, len(self.raw), step):
            rows = self.raw[start : start + step]
            value = largest(rows[:, : kind.value_bytes(self.shape[1])], kind.values)
            # a rotation makes no value longer than the group of values that it is of
            found.append(float(self._scales(rows).abs().max()) * value * max(1.0, kind.rotation**0.5))
        return float(torch.tensor(found).max())

    def _write(self, out: torch.Tensor, start: int, stop: int) -> None:
        kind, rows, columns = GROUPED_TYPES[self.qtype], self.raw[start:stop], self.shape[1]
        values, scales = small_values(rows[:, : kind.value_bytes(columns)], kind.values), self._scales(rows)
        if kind.rotation:
            # its root is a power of two, so that a value is rounded once, when it is scaled
            values, scales = turned_back(values, kind.rotation), scales / kind.rotation**0.5
        if kind.group:
            scales = scales.repeat_interleave(kind.group, dim=1)[:, :columns]
        torch.mul(values, scales, out=values)
        out.copy_(values)

    def _scales(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the groups of rows, with the scale of all: float32 [rows, groups]."""
        kind = GROUPED_TYPES[self.qtype]
        groups, rest = kind.groups(self.shape[1]), rows[:, kind.value_bytes(self.shape[1]) :]
        if kind.scale == "F32":
            return float32_values(rest)
        scales = small_values(rest[:, :groups], kind.scale)
        return float32_values(rest[:, groups:]) * scales if kind.total else scales


def dense(value: torch.Tensor | PackedTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A plain tensor of either, in the given dtype or else the stored one (float32 for a packed one)."""
    if isinstance(value, PackedTensor):
        return value.dequantize(dtype)
    return value if dtype is None else value.to(dtype)


def stack_rows(parts: Sequence[torch.Tensor | PackedTensor], axis: int = 0) -> torch.Tensor | PackedTensor:
    """Matrices of one width below each other, or tensors along another axis, every value as it was.

    Rows are packed where all of them are packed in one type. All else is dense: in float32 where a packed one is among
    them, else in the dtype that holds them all.
    """
    packed = [part for part in parts if isinstance(part, PackedTensor)]
    if not axis and len(packed) == len(parts) and len({part.qtype for part in packed}) == 1:
        raw, rows = torch.cat([part.raw for part in packed]), sum(part.shape[0] for part in packed)
        runs = tuple(run for part in packed if isinstance(part, ScaledTensor) for run in part.scales)
        changes: dict[str, Any] = {"scales": runs} if runs else {}
        return replace(packed[0], raw=raw, shape=(rows, packed[0].shape[1]), **changes)
    values = [dense(part) for part in parts]
    if any(value.dtype != values[0].dtype for value in values):
        # float8 has no promotion of its own
        values = [value.to(torch.float32) if value.element_size() == 1 else value for value in values]
    return torch.cat(values, dim=axis)


def _unpacker(qtype: str) -> Callable[..., torch.Tensor]:
    """diffusers' function for the blocks of a type: uint8 [blocks, size] -> ``dtype`` [blocks, values]."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType

    unpack = dequantize_functions.get(GGMLQuantizationType[qtype])
    if unpack is None:
        # IQ4_NL and IQ4_XS came with 0.36.0
        raise FileError(f"Tensors of GGUF type {qtype} are not read by the installed diffusers: update it.")
    return cast("Callable[..., torch.Tensor]", unpack)
