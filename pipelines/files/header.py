"""What every container's header comes to: which file, which tensors, what metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import FileError
from .block_types import BLOCK_TYPES, GROUPED_TYPES, SCALED_TYPES

# what no real file comes near: beyond it, names and sizes are not handed on
MAX_NAME = 1 << 10  # letters of a tensor's name
MAX_TENSORS = 1 << 17
MAX_DIMS = 8
# bits per value, from the safetensors format description
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class FileStamp:
    """Tells a file from its replacement without reading it: path, size in bytes, time of last change in ns, inode."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Raises FileError where there is no such file."""
        try:
            stat = path.stat()
        except OSError as error:
            raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header: its shape, and its dtype.

    The dtype is in safetensors' spelling (``"BF16"``), or a key of ``BLOCK_TYPES`` (``"Q4_K"``), ``SCALED_TYPES`` or
    ``GROUPED_TYPES``.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def packed(self) -> bool:
        """Whether the tensor that is read is a PackedTensor."""
        return self.dtype in BLOCK_TYPES or self.dtype in SCALED_TYPES or self.dtype in GROUPED_TYPES

    @property
    def size(self) -> int:
        """About how many bytes it takes in its file: scales that are stored beside it are left out."""
        values = prod(self.shape)
        if (block := BLOCK_TYPES.get(self.dtype)) is not None:
            return values // block.values * block.size
        if (group := GROUPED_TYPES.get(self.dtype)) is not None:
            return values // group.in_a_byte
        return values * BITS.get(SCALED_TYPES.get(self.dtype, self.dtype), 8) // 8


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        path: the file.
        tensors: name -> dtype and shape, in the file's order.
        metadata: the ``__metadata__`` strings, empty where the file has none.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def sha256(path: Path) -> str:
    """SHA-256 of the whole file, as 64 hex digits; raises FileError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
