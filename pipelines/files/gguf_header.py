"""The header of a GGUF file, checked.

Not read by the gguf package: that one maps the file for as long as any of its arrays lives, and fails on a damaged file
with whatever numpy happens to say.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError
from ..words import shown
from .block_types import BLOCK_TYPES
from .content import START, describe
from .header import MAX_DIMS, MAX_NAME, MAX_TENSORS, FileStamp, Header, TensorInfo

_VERSIONS = (2, 3)
_PLAIN = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}  # number in the file -> name, bytes per value
_PACKED = {block.number: name for name, block in BLOCK_TYPES.items()}
READABLE = (*(name for name, _ in _PLAIN.values()), *BLOCK_TYPES)

# kinds of metadata values: number in the file -> struct code
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# what no real header comes near: beyond it, the bytes are none
_MAX_TEXT = 1 << 26  # bytes
_MAX_TEXTS = 1 << 22  # texts in an array; a tokenizer's vocabulary is one
_MAX_ENTRIES = 1 << 12  # of the metadata
_AGAIN = "Download it again."


@dataclass(frozen=True)
class Layout:
    """A checked header.

    Attributes:
        header: what the other containers have as well.
        spans: where each tensor's bytes are: name -> first byte in the file, number of bytes.
    """

    header: Header
    spans: dict[str, tuple[int, int]]


class _Parser:
    """Reads a header front to back; what does not fit into the file is an error before it is read."""

    def __init__(self, file: BinaryIO, name: str, size: int, position: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self.position = position
        file.seek(position)

    def damaged(self, why: str) -> FileError:
        return FileError(f"{self._name!r} is damaged: {why}. {_AGAIN}")

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self._size:
            raise FileError(
                f"{self._name!r} is cut off: its header alone needs {self.position:,} bytes, the file has "
                f"{self._size:,}. {_AGAIN}"
            )

    def _take(self, count: int) -> bytes:
        self._advance(count)
        data = self._file.read(count)
        if len(data) != count:
            raise FileError(f"{self._name!r} was changed while it was read. Run again.")
        return data

    def number(self, code: str) -> int | float:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def count(self, code: str) -> int:
        return int(self.number(code))

    def text(self, limit: int = _MAX_TEXT) -> str:
        length = self.count("Q")
        if length > limit:
            raise self.damaged(f"a text in its header has {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a text in its header is no UTF-8") from error

    def value(self) -> str | int | float | None:
        """A metadata value; None for an array, which is passed over."""
        kind = self.count("I")
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            kind, length = self.count("I"), self.count("Q")
            if kind in _NUMBERS:
                self._advance(length * struct.calcsize("<" + _NUMBERS[kind]))
                self._file.seek(self.position)
                return None
            if kind == _TEXT and length <= _MAX_TEXTS:
                for _ in range(length):
                    self.text()
                return None
        raise self.damaged("its metadata cannot be understood")


def read_layout(path: Path) -> Layout:
    """Reads and checks a header; its errors are those of :func:`..gguf.read_header`."""
    size = FileStamp.of(path).size
    try:
        with path.open("rb") as file:
            start = file.read(START)
            if start[:4] != b"GGUF":
                what = describe(start)
                why = f"it is {what}." if what else f"it does not begin with GGUF. {_AGAIN}"
                raise FileError(f"{path.name!r} is no GGUF file: {why}")
            return _parse(path, _Parser(file, path.name, size, 4), size)
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error


def _parse(path: Path, parser: _Parser, size: int) -> Layout:
    """Reads what follows the first four bytes."""
    version = parser.count("I")
    if version not in _VERSIONS:
        # the other byte order has its version in the upper half
        what = "is written for big-endian machines" if version & 0xFFFF == 0 < version else f"has version {version:,}"
        raise FileError(f"{path.name!r} {what}; only GGUF versions 2 and 3, little-endian, are read.")
    tensor_count = parser.count("Q")
    metadata = _metadata(parser)
    if tensor_count > MAX_TENSORS:
        raise parser.damaged(f"its header names {tensor_count:,} tensors, and {MAX_TENSORS:,} are read at most")
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise FileError(f"{path.name!r} is one of {parts} parts of a model; only whole GGUF files are read.")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise parser.damaged("its general.alignment is no power of two")

    tensors: dict[str, TensorInfo] = {}
    offsets: dict[str, tuple[int, int]] = {}
    for _ in range(tensor_count):
        name = parser.text(MAX_NAME)
        if name in tensors:
            raise parser.damaged(f"the tensor {shown(name)} is in its header twice")
        tensors[name], length = _tensor(path, parser, name)
        offsets[name] = parser.count("Q"), length
    start = -(-parser.position // alignment) * alignment
    end = 0
    for name, (begin, length) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin % alignment or begin < end:
            raise parser.damaged(f"the data of {shown(name)} does not begin after that of the tensor before it")
        end = begin + length
    if start + end > size and tensors:
        raise FileError(
            f"{path.name!r} is cut off: its tensors need {start + end:,} bytes, the file has {size:,}. {_AGAIN}"
        )
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return Layout(
        Header(path, tensors, texts), {name: (start + begin, length) for name, (begin, length) in offsets.items()}
    )


def _metadata(parser: _Parser) -> dict[str, str | int | float | None]:
    metadata: dict[str, str | int | float | None] = {}
    for _ in range(parser.count("Q")):
        key = parser.text(MAX_NAME)
        if key in metadata:
            raise parser.damaged(f"{shown(key)} is in its metadata twice")
        if len(metadata) == _MAX_ENTRIES:
            raise parser.damaged(f"its metadata have more than {_MAX_ENTRIES:,} entries")
        metadata[key] = parser.value()
    return metadata


def _tensor(path: Path, parser: _Parser, name: str) -> tuple[TensorInfo, int]:
    """The entry of a tensor after its name, and how many bytes its data has."""
    dims = parser.count("I")
    if dims > MAX_DIMS:
        raise parser.damaged(f"the tensor {shown(name)} has {dims:,} dimensions")
    shape = tuple(reversed([parser.count("Q") for _ in range(dims)]))
    if 0 in shape:
        raise parser.damaged(f"the tensor {shown(name)} has no values")
    number = parser.count("I")
    if number in _PLAIN:
        dtype, width = _PLAIN[number]
        return TensorInfo(dtype, shape), math.prod(shape) * width
    if number not in _PACKED:
        raise FileError(
            f"{path.name!r} cannot be used: its tensor {shown(name)} is of type {_type_name(number)}. Choose a file of "
            f"another quantisation; these types are read: {', '.join(READABLE)}."
        )
    block = BLOCK_TYPES[_PACKED[number]]
    if not shape or shape[-1] % block.values:
        raise parser.damaged(f"the rows of {shown(name)}, shape {list(shape)}, are no whole {_PACKED[number]} blocks")
    return TensorInfo(_PACKED[number], shape), math.prod(shape) // block.values * block.size


def _type_name(number: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return f"number {number:,}, which GGUF does not define"
