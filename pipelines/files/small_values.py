"""Values of a byte or of half a byte: from their bytes to float32, and the largest of them."""

from __future__ import annotations

from functools import lru_cache

import torch

FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# values of 4 bits: a sign, two bits of exponent, one of mantissa
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST = {"F4": 6.0, "I8": 128.0, "I4": 8.0}


def small_values(raw: torch.Tensor, dtype: str) -> torch.Tensor:
    """Bytes [rows, bytes of a row] as the values that they are, float32 [rows, values of a row].

    Args:
        raw: uint8.
        dtype: see :attr:`.block_types.GroupedType.values`; or ``F8_E8M0``, as which scales are stored.
    """
    if dtype == "F8_E8M0":
        # a power of two, as float32 has it; the smallest is below float32's normal values, and taken for nothing
        return (raw.to(torch.int32) << 23).view(torch.float32)
    if dtype == "I8":
        return raw.view(torch.int8).to(torch.float32)
    if dtype == "F4":
        table = torch.tensor((*_FLOAT4, *(-value for value in _FLOAT4)), device=raw.device)
        return table[torch.stack((raw >> 4, raw & 15), dim=-1).flatten(-2).long()]
    if dtype == "I4":
        halves = torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2)
        # two's complement in four bits
        return (halves ^ 8).to(torch.float32) - 8
    if raw.device.type == "mps":
        # has no float8
        table = torch.arange(256, dtype=torch.uint8).view(FLOAT8[dtype]).to(torch.float32).to(raw.device)
        return table[raw.long()]
    return raw.view(FLOAT8[dtype]).to(torch.float32)


def float32_values(raw: torch.Tensor) -> torch.Tensor:
    """Bytes as float32, wherever they begin."""
    # of a copy: where the bytes begin is no whole number of values
    return raw.clone(memory_format=torch.contiguous_format).view(torch.float32)


def largest(raw: torch.Tensor, dtype: str) -> float:
    """No value is larger, either sign; NaN and Inf are the largest. Of float8 the very largest, of others a bound."""
    if dtype in _LARGEST:
        return _LARGEST[dtype]
    if not raw.numel():
        return 0.0
    # the bits of positive values are in the values' order, NaN and Inf last; so are those of negative ones, 128 above:
    # two passes without a copy
    bits = torch.tensor([max(int(raw.view(torch.int8).max()), int(raw.max()) - 128, 0)])
    return float(bits.to(torch.uint8).view(FLOAT8[dtype]).to(torch.float32))


def turned_back(values: torch.Tensor, rotation: int) -> torch.Tensor:
    """Whole numbers [rows, columns] of a rotated weight, times its Hadamard matrix but not yet by its scale.

    The rotation is its own reverse: a symmetric matrix of ones and minus ones, by the square root of its size. The sums
    are whole numbers far below 2^24, so that every order of them, and every precision of a device's matrix products,
    gives the same.

    Args:
        values: float32, of at most 8 bits.
        rotation: columns that were turned together.
    """
    return (values.reshape(-1, rotation) @ _hadamard(rotation, str(values.device))).reshape(values.shape)


@lru_cache(maxsize=8)
def _hadamard(size: int, device: str) -> torch.Tensor:
    """Of ones and minus ones, as comfy-kitchen builds it (``tensor/int8_utils.py``): powers of the one of 4 by 4."""
    four = 1 - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix.to(device)
