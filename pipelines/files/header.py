"""What every container's header comes to: which file, which tensors, what metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError
from .block_types import BLOCK_TYPES, GROUPED_TYPES, SCALED_TYPES

# what no real file comes near: beyond it, names and sizes are not handed on
MAX_NAME = 1 << 10  # letters of a tensor's name
MAX_TENSORS = 1 << 17
MAX_DIMS = 8


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
