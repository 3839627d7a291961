"""What the loaders, the LoRA stack and the report ask of wherever a part lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import FileError
from ..files import read_header
from ..files.block_types import BLOCK_TYPES, SCALED_TYPES
from ..words import shown

if TYPE_CHECKING:
    import torch

    from ..files.header import FileStamp, TensorInfo
    from ..files.packed import PackedTensor
    from ..options import Role

_SAMPLES = 16  # places of each file that the fingerprint reads
_SAMPLE_SIZE = 65536  # bytes


class Source(Protocol):
    """One part's weights: a frozen value made without reading any, and another one where a file was replaced."""

    @property
    def name(self) -> str:
        """How it is shown: a hub id with its commit, a folder or a file. Never an absolute path."""
        ...

    @property
    def component(self) -> str:
        """The part's name in its model, e.g. ``transformer``, ``text_encoder`` or ``vae``."""
        ...

    @property
    def role(self) -> Role:
        """What the part does."""
        ...

    @property
    def config_name(self) -> str:
        """What the configuration is taken from, for messages."""
        ...

    @property
    def files(self) -> tuple[FileStamp, ...]:
        """Every file that decides the part: configuration, tokenizer and weights."""
        ...

    @property
    def weight_files(self) -> tuple[FileStamp, ...]:
        """Those that hold weights."""
        ...

    def config(self) -> dict[str, Any]:
        """The configuration in the keys of the part's class; raises FileError where it cannot be had."""
        ...

    def tensor_infos(self) -> dict[str, TensorInfo]:
        """The model's name -> stored dtype and shape; raises FileError where a file is damaged or was replaced."""
        ...

    def tokenizer(self) -> Path | bytes | None:
        """Of a text encoder: a folder that transformers reads, the bytes of a sentencepiece model, or nothing."""
        ...

    @property
    def tokenizer_name(self) -> str:
        """Where a tokenizer would be, for messages."""
        ...

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        """Yields those tensors by the model's names, on the CPU, in their stored dtype."""
        ...


def packed_as(source: Source) -> str:
    """How the weights are packed, which cannot be written to: ``GGUF Q4_K, Q8_0``; empty where all are plain."""
    types = sorted({info.dtype for info in source.tensor_infos().values() if info.packed})
    blocks = [name for name in types if name in BLOCK_TYPES]
    kinds = ["scaled float8" if name in SCALED_TYPES else name for name in types if name not in BLOCK_TYPES]
    return ", ".join(dict.fromkeys([f"GGUF {', '.join(blocks)}"] * bool(blocks) + kinds))


def check_complete(source: Source, expected: Mapping[str, Sequence[int]], surplus: Sequence[str] = ()) -> None:
    """Compares a source with what the model needs, before anything is loaded.

    Args:
        source: the part.
        expected: state-dict name -> shape.
        surplus: parts of names that may be there although the model has no place for them.

    Raises:
        FileError: tensors are missing, have other shapes or no place in the model; or a file is damaged.
    """
    found = source.tensor_infos()
    missing = [name for name in expected if name not in found]
    if missing:
        raise FileError(
            f"{source.name!r} is incomplete: {source.component} lacks {len(missing)} of {len(expected)} tensors, "
            f"the first is {shown(missing[0])}. Download it again."
        )
    unknown = [name for name in found if name not in expected and not any(part in name for part in surplus)]
    if unknown:
        raise FileError(
            f"{source.name!r} does not fit its own {source.config_name}: the model has no place for {len(unknown)} of "
            f"its tensors, the first is {shown(unknown[0])}. Download both from one repository."
        )
    for name, shape in expected.items():
        if found[name].shape != tuple(shape):
            raise FileError(
                f"{source.name!r} does not fit its own {source.config_name}: {name!r} has shape "
                f"{list(found[name].shape)} in the file and {list(shape)} in the model."
            )


def fingerprint(sources: Iterable[Source]) -> str:
    """16 hex digits that tell these weights from others.

    Made of the parts' configurations and of every weight file's name, size, header and samples of its data: the files
    are too large to be hashed whole before each first picture.
    """
    return _fingerprint(tuple(sources))


@lru_cache(maxsize=16)
def _fingerprint(sources: tuple[Source, ...]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source.config(), sort_keys=True).encode())
    for stamp in dict.fromkeys(stamp for source in sources for stamp in source.weight_files):
        digest.update(f"{stamp.path.parent.name}/{stamp.path.name}\0{stamp.size}\0".encode())
        digest.update(repr(sorted(read_header(stamp.path).tensors.items())).encode())
        try:
            with stamp.path.open("rb") as file:
                for index in range(_SAMPLES):
                    file.seek(stamp.size * index // _SAMPLES)
                    digest.update(file.read(_SAMPLE_SIZE))
        except OSError as error:
            raise FileError(f"{stamp.path.name!r} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()[:16]
