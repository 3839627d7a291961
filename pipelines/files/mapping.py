"""Tensors that lie in their file's own pages: no copy is made, and where the system needs the room it takes them back.

The pages are private: what is written to them never reaches the file. A file that is overwritten in place while it is
mapped changes the weights, which :meth:`MappedFile.check` tells; one that is cut short ends the process when the lost
pages are touched, as with ComfyUI's own and diffusers' maps. A host may forbid maps: then everything is read.
"""

from __future__ import annotations

import bisect
import mmap
import os
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

from ..errors import FileError

if TYPE_CHECKING:
    import torch

# A piece is mapped as long as one of its tensors lives: what is cast or quantised as it is read leaves soon.
_LEAST = 256 << 20  # bytes, at the least
_PIECES = 64  # of a file, at the most: before Python 3.13 each holds a file descriptor of its own
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name == "posix" else {}
_ALIGNED = 8  # a tensor that begins elsewhere is read


class Maps:
    """Whether files may be mapped in this process.

    Attributes:
        allowed: the host's word.
    """

    def __init__(self) -> None:
        self.allowed = True


MAPS = Maps()


class MappedFile:
    """A file whose tensors may be mapped.

    Args:
        file: open for reading; it may be closed afterwards.
        spans: tensor -> its first byte in the file, and how many it has.
    """

    def __init__(self, file: IO[bytes], spans: Mapping[str, tuple[int, int]]) -> None:
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._name = os.path.basename(file.name)
        self._stamp = self._stamped()
        self._ends = _ends(spans.values())
        self._pieces: weakref.WeakValueDictionary[int, Piece] = weakref.WeakValueDictionary()

    def piece(self, begin: int, length: int) -> Piece | None:
        """The piece with these bytes; None where they must be read.

        It is there as long as somebody holds it or a tensor of it: who asks for the next tensor holds it until then.
        """
        if not length or begin % _ALIGNED or begin + length > self._stamp[0]:
            return None
        number = bisect.bisect_left(self._ends, begin + length)
        piece = self._pieces.get(number)
        if piece is None:
            start = self._ends[number - 1] if number else 0
            start -= start % mmap.ALLOCATIONGRANULARITY
            size = self._ends[number] - start
            try:
                piece = Piece(self._descriptor, size, access=mmap.ACCESS_COPY, offset=start, **_UNTRACKED)
            # some file systems have no maps, and some systems no more of them
            except (OSError, ValueError):
                return None
            piece.begin(self, start)
            self._pieces[number] = piece
        return piece

    def check(self) -> None:
        """Raises FileError where the file was written to since it was opened; another file in its place is none."""
        if self._stamped() != self._stamp:
            raise FileError(f"{self._name!r} was changed while it was in use. Run again.")

    def _stamped(self) -> tuple[int, int]:
        stat = os.fstat(self._descriptor)
        return stat.st_size, stat.st_mtime_ns


class Piece(mmap.mmap):
    """A part of a file in memory; tensors made of it hold it.

    Attributes:
        file: whose.
        start: its first byte in the file.
        address: where it begins in memory.
    """

    file: MappedFile
    start: int
    address: int

    def begin(self, file: MappedFile, start: int) -> None:
        """Says which it is, and has the disk read ahead of whoever touches its pages."""
        self.file = file
        self.start = start
        self.address = self.bytes(start, 1).data_ptr()
        _PIECES_IN_USE.add(self)
        if hasattr(mmap, "MADV_WILLNEED"):
            self.madvise(mmap.MADV_WILLNEED)

    def bytes(self, begin: int, length: int) -> torch.Tensor:
        """Bytes of the file, uint8 of one dimension."""
        import torch

        return torch.frombuffer(self, dtype=torch.uint8, count=length, offset=begin - self.start)

    def let_go(self, address: int, length: int) -> None:
        """Takes the pages that lie wholly within these bytes out of this process' memory."""
        page = mmap.PAGESIZE
        first = -(-(address - self.address) // page) * page
        last = (address - self.address + length) // page * page
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self.madvise(mmap.MADV_DONTNEED, first, last - first)


_PIECES_IN_USE: weakref.WeakSet[Piece] = weakref.WeakSet()


def mapped_files(tensors: Iterable[torch.Tensor]) -> set[MappedFile]:
    """The files that tensors lie in, without those in memory of their own."""
    return {piece.file for tensor in tensors if (piece := _piece_of(tensor)) is not None}


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a file."""
    return _piece_of(tensor) is not None


def let_go(tensor: torch.Tensor) -> None:
    """Takes a tensor's pages out of this process' memory; they come again when it is read.

    What was written to it is lost with them. A tensor in memory of its own stays as it is.
    """
    if (piece := _piece_of(tensor)) is not None:
        piece.let_go(tensor.data_ptr(), tensor.nbytes)


def _piece_of(tensor: torch.Tensor) -> Piece | None:
    address = _address(tensor)
    return next((piece for piece in _PIECES_IN_USE if 0 <= address - piece.address < len(piece)), None)


def _address(tensor: torch.Tensor) -> int:
    """Of a plain tensor on the CPU; 0 of any other, which no file's is."""
    plain = type(tensor.data).__name__ == "Tensor" and tensor.device.type == "cpu"
    return tensor.data_ptr() if plain else 0


def _ends(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Where the pieces of a file end: with a tensor."""
    ends = sorted(begin + length for begin, length in spans)
    least = max(_LEAST, ends[-1] // _PIECES) if ends else _LEAST
    chosen, start = [], 0
    for end in ends:
        if end - start >= least:
            chosen.append(end)
            start = end
    return [*chosen, *ends[-1:]] if not chosen or chosen[-1] != ends[-1] else chosen
