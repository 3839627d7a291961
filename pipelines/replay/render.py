"""Renders a grid: what is on the disk is taken from there, texts are encoded once, a cell's failure is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import AITKError
from ..run.run import Progress, prepare
from ..run.sample import sample
from .cell import Outcome
from .key import cell_key
from .progress import GridObserver
from .texts import TextsAhead

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..observer import Observer
    from .cell import Cell
    from .grid import Grid
    from .store import CellStore


def render_grid(engine: Engine, grid: Grid, store: CellStore, observer: Observer) -> list[Outcome]:
    """Renders what of a grid is not finished yet; a killed or interrupted replay goes on where it stopped.

    Args:
        engine: with the weights.
        grid: what to render.
        store: of finished cells; each cell is kept there as soon as it is rendered.
        observer: told of the whole grid's progress, asked for interruption.

    Returns:
        An outcome for each place, in the order of their checkpoints, samples and strengths.

    Raises:
        Exception: whatever the observer raises to interrupt; finished cells are kept.
    """
    work = _Work(engine, store)
    with engine.turn(observer):
        observer.stage("looking at what is rendered already")
        for cell in grid.cells:
            observer.check()
            work.add(cell, observer)
        work.render(observer)
    return sorted([*grid.refused, *work.outcomes()], key=lambda outcome: outcome.place)


@dataclass(frozen=True)
class _Waiting:
    cell: Cell
    steps: int


class _Work:
    """What a grid comes to: by key, for two places may be one picture, as the base at two strengths is."""

    def __init__(self, engine: Engine, store: CellStore) -> None:
        self._engine = engine
        self._store = store
        self._texts = TextsAhead()
        self._keys: list[tuple[Cell, str]] = []
        self._refused: list[Outcome] = []
        self._found: dict[str, Mapping[str, Any]] = {}
        self._rendered: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._failed: dict[str, str] = {}

    def add(self, cell: Cell, observer: Observer) -> None:
        """Decides everything of a cell; loads nothing."""
        try:
            progress = Progress(replace(self._engine.counters))
            run, _ = prepare(self._engine, cell.handle, cell.request, observer, progress)
            key = cell_key(run)
            if key not in self._found and key not in self._waiting:
                report = self._store.find(key)
                if report is not None:
                    self._found[key] = report
                else:
                    self._texts.add(key, run)
                    self._waiting[key] = _Waiting(cell, len(run.schedule.sigmas) - 1)
        except AITKError as error:
            self._refused.append(Outcome(cell.place, error=str(error)))
        else:
            self._keys.append((cell, key))

    def render(self, observer: Observer) -> None:
        """Renders what waits, in the order in which it was added."""
        with self._engine.keeping_texts(self._texts.count):
            self._failed.update(self._texts.encode(self._engine, observer))
            left = {key: one for key, one in self._waiting.items() if key not in self._failed}
            grid = GridObserver(observer, len(left), sum(one.steps for one in left.values()))
            for key, one in left.items():
                grid.begin(one.cell.place, one.steps)
                try:
                    result = sample(self._engine, one.cell.handle, one.cell.request, grid)
                    self._rendered[key] = self._store.keep(key, result.images[0], result.report)
                except AITKError as error:
                    self._failed[key] = str(error)
                grid.end()

    def outcomes(self) -> list[Outcome]:
        return [*self._refused, *(self._outcome(cell, key) for cell, key in self._keys)]

    def _outcome(self, cell: Cell, key: str) -> Outcome:
        place = cell.place
        if key in self._failed:
            return Outcome(place, error=self._failed[key])
        found = key in self._found
        report = self._found[key] if found else self._rendered[key]
        where = {"step": place.step, "index": place.index, "strength": place.strength, "key": key}
        return Outcome(place, self._store.picture(key), {**report, "replay": where}, found=found)
