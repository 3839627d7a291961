"""One observer's view of many runs: how far the whole grid is, and how long it will take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..amounts import duration

if TYPE_CHECKING:
    import torch

    from ..observer import Observer
    from .cell import Place

_SHOW_EVERY = 1.0  # seconds


class TimeLeft:
    """How long the rest of some steps will take, by those that are done.

    Args:
        steps: all of them.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._start: float | None = None

    def begin(self) -> None:
        """The first step begins; later calls mean nothing."""
        if self._start is None:
            self._start = time.monotonic()

    def after(self, text: str, done: int) -> str:
        """A text, and behind it the time that is left after so many steps; the text alone before the first."""
        seconds = self._seconds(done)
        return text if seconds is None else f"{text}; about {duration(seconds)} left"

    def _seconds(self, done: int) -> float | None:
        if self._start is None or not done:
            return None
        return (time.monotonic() - self._start) / done * (self._steps - done)


class GridObserver:
    """Passes each run's progress on as the grid's; see :class:`..observer.Observer`.

    Args:
        observer: whoever started the replay.
        cells: to be rendered.
        steps: of all of them.
    """

    def __init__(self, observer: Observer, cells: int, steps: int) -> None:
        self._observer = observer
        self._cells = cells
        self._steps = steps
        self._begun = 0
        self._before = 0  # steps of the cells that ended
        self._within = 0  # of this one
        self._own = 0  # of this one in all
        self._where = ""
        self._left = TimeLeft(steps)
        self._shown = 0.0

    def begin(self, place: Place, steps: int) -> None:
        """A cell begins."""
        self._left.begin()
        self._begun += 1
        self._within, self._own = 0, steps
        self._where = f"cell {self._begun} of {self._cells} ({place})"
        self._observer.check()

    def end(self) -> None:
        """The cell ended, with a picture or without: its steps are no longer to come."""
        self._before += self._own
        self._within = self._own = 0

    def check(self) -> None:
        self._observer.check()

    def stage(self, text: str) -> None:
        self._observer.stage(self._said(text))

    def progress(self, text: str) -> None:
        self._observer.progress(self._said(text))

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        self._within = done
        self._observer.step(self._before + done, self._steps, x0)
        now = time.monotonic()
        if now - self._shown >= _SHOW_EVERY:
            self._shown = now
            self.progress(f"{done} of {total} steps")

    def _said(self, text: str) -> str:
        if not self._where:
            return text
        return self._left.after(f"{self._where}: {text}", self._before + self._within)
