"""OmniGen2's schedule: its time runs from 0, noise, to 1, the image, shifted by the number of latent pixels.

The shared sampler counts noise levels instead, sigma = 1 - t, which in float32 loses the last bits of small times. So
the loop makes the times anew, with :func:`times_of`, from the number of steps that these sigmas are the end of.
"""

from __future__ import annotations

import math

import numpy as np
import torch

_UNSHIFTED_SIDE = 40  # latent pixels; the shift of such a square is 1


def times(steps: int, latent_pixels: int) -> torch.Tensor:
    """[steps + 1], float32, CPU: 0, then rising, then 1.

    Every operation is in float32, NumPy 1's way with a float64 scalar and a float32 array; AI Toolkit pins NumPy 1.
    NumPy 2 computes in float64 here, and 4 of 10 values come out one unit in the last place away.
    """
    shift = np.float32(math.sqrt(latent_pixels) / _UNSHIFTED_SIDE)
    x = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    shifted = x / (shift - shift * x + x)
    return torch.cat([torch.from_numpy(shifted), torch.ones(1)])


def sigmas(steps: int, latent_pixels: int) -> torch.Tensor:
    """[steps + 1], float32, CPU: 1, then falling, then 0."""
    return 1 - times(steps, latent_pixels)


def times_of(given: torch.Tensor, latent_pixels: int) -> torch.Tensor:
    """The times, to the last bit, whose noise levels these are, on the same device.

    Args:
        given: [n + 1], the end of what :func:`sigmas` gives for n steps or more.
        latent_pixels: as given there.

    Raises:
        ValueError: no schedule ends like this.
    """
    steps, first = len(given) - 1, float(given[0])
    # the first of the last n of N steps has x = 1 - n / N, and a shift of m makes that sigma = m * n / (N - n + m * n)
    shift = math.sqrt(latent_pixels) / _UNSHIFTED_SIDE
    estimate = round(steps * (1 + shift * (1 - first) / first))
    # sigma comes with an error of some 1e-7, which with thousands of steps is worth some of them
    for distance in range(3 + int(steps * shift * 4e-7 / first**2)):
        for length in {estimate - distance, estimate + distance}:
            if length >= steps:
                found = times(length, latent_pixels)[-(steps + 1) :]
                if torch.equal(1 - found, given.cpu()):
                    return found.to(given.device)
    raise ValueError(f"no schedule of OmniGen2's ends with {steps} steps from a noise level of {first}")
