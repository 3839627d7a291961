"""How a run reports to whoever started it, and how it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Observer(Protocol):
    """What a run calls while it works. Any method may raise to interrupt the run."""

    def check(self) -> None:
        """Called between pieces of work; raises when the user has asked to stop."""

    def stage(self, text: str) -> None:
        """A new phase began, e.g. ``"loading the transformer"``."""

    def progress(self, text: str) -> None:
        """How far the phase is, e.g. ``"loading the transformer: 3.2 of 12.4 GB"``."""

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        """A sampling step ended.

        Args:
            done: steps done so far over the whole batch, 1..total.
            total: steps of the whole batch.
            x0: the current estimate of the clean latent, [1, C, h, w], on the compute device.
        """


class SilentObserver:
    """Reports nowhere and never interrupts."""

    def check(self) -> None: ...

    def stage(self, text: str) -> None: ...

    def progress(self, text: str) -> None: ...

    def step(self, done: int, total: int, x0: torch.Tensor) -> None: ...


SILENT = SilentObserver()
_SHOW_EVERY = 0.5  # seconds


class Pace:
    """Called between pieces of work: asks an observer for interruption, and tells it from time to time how far it is.

    Args:
        observer: of the run.
        say: how far the work is.
    """

    def __init__(self, observer: Observer, say: Callable[[], str]) -> None:
        self._observer = observer
        self._say = say
        self._next = time.monotonic() + _SHOW_EVERY

    def __call__(self) -> None:
        self._observer.check()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SHOW_EVERY
            self._observer.progress(self._say())
