"""What another program sends, as it comes: a wait that can be interrupted, and that ends where nothing comes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_LOOK_EVERY = 0.1  # seconds
_MOST_WAITING = 64  # items: a sender that is faster than its reader waits


class Silence(Exception):
    """Nothing came for too long."""


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


class _Mailbox:
    """Between the thread that works and the one that waits."""

    def __init__(self) -> None:
        self._items: queue.Queue[Any] = queue.Queue(_MOST_WAITING)
        self._left = threading.Event()

    def put(self, item: Any) -> None:
        """Waits while the box is full; an item that nobody waits for any more is dropped."""
        while not self._left.is_set():
            try:
                return self._items.put(item, timeout=_LOOK_EVERY)
            except queue.Full:
                continue

    def work(self, work: Callable[[Callable[[Any], None]], None]) -> None:
        """Puts what ``work`` hands over, and how it ended."""
        try:
            work(self.put)
        except BaseException as error:  # raised again in the thread that waits
            self.put(_Ended(error))
        else:
            self.put(_Ended())

    def take(self, seconds: float, check: Callable[[], None]) -> Any:
        """The next item; raises Silence where none comes for so long, or whatever ``check`` raises."""
        until = time.monotonic() + seconds
        while True:
            check()
            try:
                return self._items.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if time.monotonic() > until:
                    raise Silence from None

    def leave(self) -> None:
        """Nobody waits any more."""
        self._left.set()


def arriving(work: Callable[[Callable[[Any], None]], None], seconds: float, check: Callable[[], None]) -> Iterator[Any]:
    """What ``work`` hands over, one by one.

    A socket that timed out in the middle of an answer cannot be read on: so another thread reads it, without a limit,
    and this one watches the clock and the user. Whoever leaves closes the socket, which ends that thread.

    Args:
        work: runs in a thread; calls its argument with each thing that came.
        seconds: without any before the wait ends.
        check: called several times a second; raises to interrupt.

    Raises:
        Silence: nothing came for so long.
        Exception: whatever ``work`` or ``check`` raises.
    """
    box = _Mailbox()
    threading.Thread(target=box.work, args=(work,), daemon=True).start()
    try:
        while not isinstance(item := box.take(seconds, check), _Ended):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        box.leave()
