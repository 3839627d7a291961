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


# how many neighbours in a row are turned together ("convrot"): powers of 4; ComfyUI's own is 256
ROTATIONS = (4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class GroupedType:
    """How a type stores small values of which each group in a row has a scale; of which there is one more for all.

    Attributes:
        values: safetensors' name of the values' dtype; of two ``F4`` in a byte the first is in its upper half, of two
            ``I4`` in its lower half.
        group: values that share a scale; 0 is a whole row.
        scale: safetensors' name of the scales' dtype.
        total: whether a float32 scale of the whole weight follows.
        rotation: one of ``ROTATIONS``: the values are those of the weight after a Hadamard matrix; 0 is none.
    """

    values: str
    group: int
    scale: str
    total: bool = False
    rotation: int = 0

    @property
    def in_a_byte(self) -> int:
        """Values of a byte."""
        return 2 if self.values in ("F4", "I4") else 1

    def value_bytes(self, columns: int) -> int:
        """Bytes of a row's values."""
        return columns // self.in_a_byte

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return -(-columns // self.group) if self.group else 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of a PackedTensor: its values, its scales, and the scale of all."""
        width = 4 if self.scale == "F32" else 1
        return self.value_bytes(columns) + self.groups(columns) * width + (4 if self.total else 0)


GROUPED_TYPES = {
    "float8 E4M3 with block scales": GroupedType("F8_E4M3", 128, "F32"),
    "float8 E5M2 with block scales": GroupedType("F8_E5M2", 128, "F32"),
    "float8 E4M3 with row scales": GroupedType("F8_E4M3", 0, "F32"),
    "float8 E5M2 with row scales": GroupedType("F8_E5M2", 0, "F32"),
    "int8": GroupedType("I8", 0, "F32"),
    "mxfp8": GroupedType("F8_E4M3", 32, "F8_E8M0"),
    "nvfp4": GroupedType("F4", 16, "F8_E4M3", total=True),
    **{f"int8 convrot {number}": GroupedType("I8", 0, "F32", rotation=number) for number in ROTATIONS},
    **{f"int4 convrot {number}": GroupedType("I4", 0, "F32", rotation=number) for number in ROTATIONS},
}
