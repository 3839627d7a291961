"""The leases that handles carry (:class:`..handle.Lease`), and their ends: what they held may leave a while later."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..handle import Lease


class Leases:
    """The leases that are known, as long as they live.

    Args:
        on_end: called after the end of each, in a thread of its own.

    Attributes:
        grace: seconds between an end and its call. A graph that was changed above its loader lets go of one handle and
            comes with the next, which finds its weights.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.grace = 10.0
        self._on_end = on_end
        self._living: weakref.WeakSet[Lease] = weakref.WeakSet()

    @property
    def any_lives(self) -> bool:
        # not its length, which counts one that is dying
        return any(True for _ in self._living)

    def watch(self, lease: Lease) -> None:
        """Notes a lease, whose end is then told."""
        if lease not in self._living:
            self._living.add(lease)
            weakref.finalize(lease, self._end).atexit = False

    def _end(self) -> None:
        # the last handle dies anywhere: within a run, within ComfyUI's memory manager, wherever garbage is collected.
        # So nothing is done here, whatever the grace
        timer = threading.Timer(self.grace, self._on_end)
        timer.name = "AITK end of a lease"
        timer.daemon = True
        timer.start()
