"""Where OmniGen2's tokens stand: three rotary axes, for texts, reference images and the picture.

Text token i stands at (i, i, i). A picture's token in row r and column c stands at (offset, r, c); the offset begins
behind the text and moves on by the longer side, in tokens, of each picture.

The rotation is complex multiplication in float64, rounded once to the run's dtype. On Apple's devices, which have no
float64, it is float32; AI Toolkit's tables depend on the machine in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

_THETA = 10000  # in the released code a constant


def positions(text: int, pictures: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[tokens, 3], int64, CPU: of a text of ``text`` tokens, then of pictures of (rows, columns) tokens, in order."""
    parts = [torch.arange(text)[:, None].repeat(1, 3)]
    offset = text
    for rows, columns in pictures:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.full_like(row, offset), row, column], dim=-1).flatten(0, 1))
        offset += max(rows, columns)
    return torch.cat(parts)


class RotaryTables:
    """Complex numbers of each axis, made on the CPU at first use, and kept on the device that asked last.

    Args:
        dims: channels of each axis; their sum is a head's.
        lengths: positions of each axis.
    """

    def __init__(self, dims: Sequence[int], lengths: Sequence[int]) -> None:
        self._dims = dims
        self._lengths = lengths
        self._tables: list[torch.Tensor] = []

    def __call__(self, where: torch.Tensor, device: torch.device) -> torch.Tensor:
        """[tokens, 3] -> [1, tokens, channels / 2], complex, on the device."""
        if not self._tables:
            dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
            # whole tables, not the positions asked for: vectorised cosines differ from those of a few leftover values
            self._tables = [
                cast("torch.Tensor", get_1d_rotary_pos_embed(dim, np.arange(length), _THETA, freqs_dtype=dtype))
                for dim, length in zip(self._dims, self._lengths, strict=True)
            ]
        self._tables = [table.to(device) for table in self._tables]
        where = where.to(device)
        return torch.cat([table[where[:, axis]] for axis, table in enumerate(self._tables)], dim=-1)[None]
