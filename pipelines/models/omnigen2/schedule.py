"""OmniGen2's schedule: its time runs from 0, noise, to 1, the image, shifted by the number of latent pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..schedule import Schedule

_UNSHIFTED_SIDE = 40  # latent pixels; the shift of such a square is 1


@dataclass(frozen=True, eq=False)
class OmniGen2Schedule(Schedule):
    """The noise levels, sigma = 1 - t, which in float32 lose the last bits of small times: the loop has those apart.

    Attributes:
        times: [steps + 1], float32.
    """

    times: torch.Tensor

    @classmethod
    def of(cls, steps: int, latent_pixels: int) -> OmniGen2Schedule:
        found = times(steps, latent_pixels)
        return cls(1 - found, found)


def times(steps: int, latent_pixels: int) -> torch.Tensor:
    """[steps + 1], float32, CPU: 0, then rising, then 1.

    Every operation is in float32, NumPy 1's way with a float64 scalar and a float32 array; AI Toolkit pins NumPy 1.
    NumPy 2 computes in float64 here, and 4 of 10 values come out one unit in the last place away.
    """
    shift = np.float32(math.sqrt(latent_pixels) / _UNSHIFTED_SIDE)
    x = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    shifted = x / (shift - shift * x + x)
    return torch.cat([torch.from_numpy(shifted), torch.ones(1)])
