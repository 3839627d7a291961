"""The bytes of tensors, read from where a header says that they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..amounts import share
from ..errors import FileError
from ..observer import Pace
from .mapping import MAPS, MappedFile

if TYPE_CHECKING:
    import torch

    from ..observer import Observer


class Meter:
    """Counts what is read of tensors in this process.

    Attributes:
        bytes: so far.
    """

    def __init__(self) -> None:
        self.bytes = 0


METER = Meter()
_AT_ONCE = 32 << 20  # bytes that are read between two questions whether to go on


def reading(observer: Observer, what: str, total: int) -> Pace:
    """Called between tensors that are read, tells how many of ``total`` bytes that were since now."""
    before = METER.bytes
    return Pace(observer, lambda: f"{what}: {share(METER.bytes - before, total)}")


def read_spans(
    path: Path, spans: Mapping[str, tuple[int, int]], names: Iterable[str] | None = None, *, maps: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the bytes of tensors one by one, uint8 of one dimension.

    Args:
        path: the file.
        spans: tensor -> its first byte in the file, and how many it has.
        names: which ones; all of them by default.
        maps: whether they may lie in the file's own pages (:mod:`.mapping`); else they have memory of their own.

    Raises:
        FileError: the file cannot be read, or was changed since its header was.
    """
    import torch

    changed = f"{path.name!r} was changed while it was read. Run again."
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
    with file:
        mapped = MappedFile(file, spans) if maps and MAPS.allowed else None
        for name in spans if names is None else names:
            if name not in spans:
                raise FileError(changed)
            begin, length = spans[name]
            piece = None if mapped is None else mapped.piece(begin, length)
            if piece is not None:
                raw = piece.bytes(begin, length)
            else:
                raw = torch.empty(length, dtype=torch.uint8)
                buffer: Any = raw.numpy()
                try:
                    file.seek(begin)
                    whole = file.readinto(buffer) == length
                except OSError as error:
                    raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
                if not whole:
                    raise FileError(changed)
                del buffer
            METER.bytes += length
            yield name, raw
            del raw


def read_together(path: Path, begin: int, end: int, check: Callable[[], None]) -> torch.Tensor:
    """The bytes of a file from ``begin`` to ``end`` (left out), uint8 of one dimension, in memory of their own.

    Two threads read: of what the system has in its cache, most of the time goes into new pages of memory.

    Args:
        path: the file.
        begin, end: a part of it.
        check: called now and then; raises to interrupt.

    Raises:
        FileError: as :func:`read_spans`.
    """
    import torch

    raw = torch.empty(end - begin, dtype=torch.uint8)
    array: Any = raw.numpy()
    buffer = memoryview(array)
    try:
        with (
            path.open("rb", buffering=0) as one,
            path.open("rb", buffering=0) as other,
            ThreadPoolExecutor(1) as helper,
        ):
            for first in range(0, len(buffer), _AT_ONCE):
                last = min(first + _AT_ONCE, len(buffer))
                half = (first + last) // 2
                second = helper.submit(_read_into, other, begin + half, buffer[half:last])
                if not all((_read_into(one, begin + first, buffer[first:half]), second.result())):
                    raise FileError(f"{path.name!r} was changed while it was read. Run again.")
                METER.bytes += last - first
                check()
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
    return raw


def _read_into(file: Any, begin: int, buffer: memoryview) -> bool:
    """Whether the file has so many bytes there."""
    file.seek(begin)
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done == len(buffer)
