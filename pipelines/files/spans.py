"""The bytes of tensors, read from where a header says that they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..amounts import share
from ..errors import FileError
from ..observer import Pace

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


def reading(observer: Observer, what: str, total: int) -> Pace:
    """Called between tensors that are read, tells how many of ``total`` bytes that were since now."""
    before = METER.bytes
    return Pace(observer, lambda: f"{what}: {share(METER.bytes - before, total)}")


def read_spans(
    path: Path, spans: Mapping[str, tuple[int, int]], names: Iterable[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the bytes of tensors one by one, uint8 of one dimension, in memory of their own.

    They are read, not mapped: a disk that fails while a mapping is used ends the process.

    Args:
        path: the file.
        spans: tensor -> its first byte in the file, and how many it has.
        names: which ones; all of them by default.

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
        for name in spans if names is None else names:
            if name not in spans:
                raise FileError(changed)
            begin, length = spans[name]
            raw = torch.empty(length, dtype=torch.uint8)
            buffer: Any = raw.numpy()
            try:
                file.seek(begin)
                whole = file.readinto(buffer) == length
            except OSError as error:
                raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
            if not whole:
                raise FileError(changed)
            METER.bytes += length
            yield name, raw
            del raw, buffer
