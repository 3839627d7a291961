"""Quantises to GGUF's Q4_K, which the gguf package reads but cannot write.

A block is 256 values in 8 groups of 32; value = d * scale * q - dmin * minimum, with q of 4 bits, scale and minimum of
6 bits per group, and d and dmin in float16 per block. Its bytes: d (2), dmin (2), scales and minima (12), q (128).
"""

from __future__ import annotations

import numpy as np

BLOCK = 256
_BYTES = 144


def quantize_q4_k(values: np.ndarray) -> np.ndarray:
    """Rounds each group to 16 steps between its extremes.

    Args:
        values: float32 of (..., n) with n a multiple of 256.

    Returns:
        uint8 of (..., n / 256 * 144).
    """
    if values.shape[-1] % BLOCK:
        raise ValueError(f"Q4_K needs rows of a multiple of {BLOCK} values, these have {values.shape[-1]}.")
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, 8, 32)
    # the format subtracts the minimum, hence it cannot be above zero
    low = np.minimum(groups.min(axis=2), 0)
    step, minimum = (groups.max(axis=2) - low) / 15, -low
    d, scales = _six_bits(step)
    dmin, minima = _six_bits(minimum)
    # fitted to the steps as they will be read
    step = d[:, None].astype(np.float32) * scales
    minimum = dmin[:, None].astype(np.float32) * minima
    q = np.rint((groups + minimum[:, :, None]) / np.where(step > 0, step, 1)[:, :, None])
    q = np.clip(q, 0, 15).astype(np.uint8)
    # each 32 bytes hold two groups: the even one in the low half
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(-1, BLOCK // 2)
    packed = np.concatenate(
        [d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), _pack(scales, minima), nibbles], axis=1
    )
    return packed.reshape(*values.shape[:-1], values.shape[-1] // BLOCK * _BYTES)


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive (blocks, 8) as a float16 factor of each block and integers up to 63."""
    factor = (values.max(axis=1) / 63).astype(np.float16)
    divisor = np.where(factor > 0, factor, 1).astype(np.float32)[:, None]
    # rounded up: a scale that is too small would cut the group's largest values off
    return factor, np.clip(np.ceil(values / divisor - 1e-3), 0, 63).astype(np.uint8)


def _pack(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Two (blocks, 8) of 6 bits in 12 bytes: four scales, four minima, and the other eight spread over what is left."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)
