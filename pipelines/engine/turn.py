"""One run at a time: the weights, the LoRAs on them and the counters are one run's, and others wait for their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..observer import SILENT

if TYPE_CHECKING:
    from ..observer import Observer

_ASK_EVERY = 0.05  # seconds between two looks at a waiting run's observer


class Turn:
    """Held by the thread that uses, changes or drops weights; that thread may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def taken(self, observer: Observer = SILENT) -> Iterator[None]:
        """Holds the turn, after whoever holds it now.

        Args:
            observer: of who waits; its own interruption ends its waiting, and nobody else's.
        """
        if not self._lock.acquire(blocking=False):
            observer.stage("waiting for another run to end")
            while not self._lock.acquire(timeout=_ASK_EVERY):
                observer.check()
        try:
            yield
        finally:
            self._lock.release()
