"""The types of packed tensors that can be read: facts of the formats, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """How a packed type stores values.

    Attributes:
        number: the type's number in a file.
        values: how many values make a block; a row is a whole number of blocks.
        size: bytes of a block.
        scales: where in a block its half-precision scales (and minimums) begin and end, in bytes.
    """

    number: int
    values: int
    size: int
    scales: tuple[int, int]


# those that diffusers' dequantiser reads
BLOCK_TYPES = {
    "Q4_0": BlockType(2, 32, 18, (0, 2)),
    "Q4_1": BlockType(3, 32, 20, (0, 4)),
    "Q5_0": BlockType(6, 32, 22, (0, 2)),
    "Q5_1": BlockType(7, 32, 24, (0, 4)),
    "Q8_0": BlockType(8, 32, 34, (0, 2)),
    "Q2_K": BlockType(10, 256, 84, (80, 84)),
    "Q3_K": BlockType(11, 256, 110, (108, 110)),
    "Q4_K": BlockType(12, 256, 144, (0, 4)),
    "Q5_K": BlockType(13, 256, 176, (0, 4)),
    "Q6_K": BlockType(14, 256, 210, (208, 210)),
    "IQ4_NL": BlockType(20, 32, 18, (0, 2)),
    "IQ4_XS": BlockType(23, 256, 136, (0, 2)),
}

# float8 values with a scale that is stored beside them: our name -> safetensors' name of the values' dtype
SCALED_TYPES = {"scaled F8_E4M3": "F8_E4M3", "scaled F8_E5M2": "F8_E5M2"}
