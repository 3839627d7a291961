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


def arriving(
    work: Callable[[Callable[[Any], None]], None], seconds: float, check: Callable[[], None]
) -> Iterator[Any]:
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
    items: queue.Queue[Any] = queue.Queue(_MOST_WAITING)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                return items.put(item, timeout=_LOOK_EVERY)
            except queue.Full:
                continue

    def run() -> None:
        try:
            work(put)
        except BaseException as error:  # raised again below, in the thread that waits
            put(_Ended(error))
        else:
            put(_Ended())

    threading.Thread(target=run, daemon=True).start()
    try:
        last = time.monotonic()
        while True:
            check()
            try:
                item = items.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if time.monotonic() - last > seconds:
                    raise Silence from None
                continue
            last = time.monotonic()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        left.set()
