"""Files that hold tensors: one module per container format, each with a checked header and a reader.

Imports neither torch nor gguf before tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from .header import FileStamp, Header

if TYPE_CHECKING:
    import torch

    from .packed import PackedTensor

# ending, in lower case -> the module that reads it; imported with the first file
SUFFIXES = MappingProxyType({
    ".safetensors": "safetensors", ".sft": "safetensors",
    ".gguf": "gguf",
    ".pth": "torch_pickle", ".pt": "torch_pickle", ".ckpt": "torch_pickle", ".bin": "torch_pickle",
})  # fmt: skip


def read_header(path: Path) -> Header:
    """Reads and checks the header of a file of any container, told by its ending.

    Raises:
        FileError: the ending is none of ``SUFFIXES``; or whatever is wrong with the file, by its name.
    """
    _reader(path)
    return _header(FileStamp.of(path))


# one file is asked several times before a run, and a GGUF file's header may hold a whole vocabulary
@lru_cache(maxsize=32)
def _header(stamp: FileStamp) -> Header:
    return _reader(stamp.path).read_header(stamp.path)


def read_tensors(
    path: Path, names: list[str] | None = None, *, maps: bool = False
) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """Yields the tensors of a file one by one, on the CPU, as stored; only GGUF files have packed ones.

    Args:
        path: a file that :func:`read_header` accepts.
        names: which ones; all of them by default.
        maps: whether they may lie in the file's own pages (:mod:`.mapping`); else they have memory of their own.
    """
    yield from _reader(path).read_tensors(path, names, maps=maps)


def _reader(path: Path) -> Any:
    """The module that reads a file; raises FileError where there is none by the file's name."""
    module = SUFFIXES.get(path.suffix.lower())
    if module is None:
        raise FileError(f"{path.name!r} is no file of tensors by its name; these are read: {', '.join(SUFFIXES)}.")
    return import_module(f".{module}", __name__)
