"""The rotary angles of a vision tower, rounded where its frequencies are.

transformers up to 5.16 makes the angles in the dtype of the frequencies, which is the run's where the whole module was
cast: in bfloat16 row 37 times 0.1 is 3.703125. 5.20 and newer make them in float32, of the rounded frequencies: another
embedding. AI Toolkit pinned 4.57.3 and, since 2026-04-14, pins 5.5.3: so they are made here, in any version.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TowerRope(nn.Module):
    """In the place of a tower's own ``rotary_pos_emb``, with the frequencies of that.

    Args:
        rope: transformers' module, whose ``inv_freq`` [channels of a head / 4] belongs to rows and columns alike.

    Attributes:
        dtype: of the angles; float32 leaves them as they are.
    """

    inv_freq: torch.Tensor

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.register_buffer("inv_freq", rope.get_buffer("inv_freq"), persistent=False)

    def forward(self, *given: Any) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """As the tower of the installed transformers asks for them.

        Args:
            given: a number of rows, up to 5.8: a table [rows, channels of a head / 4]. Rows and columns of the patches,
                [patches, 2], up to 5.16: their angles, [patches, channels of a head / 2]. Or the hidden states, which
                do not count, and these: cosine and sine of the angles, each [patches, channels of a head].
        """
        positions = given[-1]
        if not isinstance(positions, torch.Tensor) or positions.ndim == 0:
            return self._angles(torch.arange(int(positions), device=self.inv_freq.device))
        angles = self._angles(positions).flatten(1)
        if len(given) == 1:
            return angles
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        return positions[..., None].to(self.dtype) * self.inv_freq.to(self.dtype)
