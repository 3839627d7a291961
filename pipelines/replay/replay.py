"""A replay from its beginning to its verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .floor import Floors
from .grid import make_grid
from .judge import Judged, judge
from .render import render_grid

if TYPE_CHECKING:
    from pathlib import Path

    from ..engine.engine import Engine
    from ..handle import PipelineHandle
    from ..jobs.job import TrainingJob
    from ..observer import Observer
    from .selection import Selection
    from .store import CellStore


def replay(
    engine: Engine,
    job: TrainingJob,
    base: PipelineHandle,
    selection: Selection,
    input_folder: Path,
    store: CellStore,
    observer: Observer,
    *,
    measure_floor: bool = False,
) -> Iterator[Judged]:
    """Renders a selection of a job's cells, then compares them one at a time.

    Each checkpoint is rendered as the version of AI Toolkit did that saved it. Where that leaves the recipe open, the
    newest is taken, and report and causes name the others. With ``measure_floor`` cells that are near the trainer's
    picture and not it are rendered once more, see :mod:`.floor`.

    Raises:
        Exception: whatever the observer raises to interrupt; finished cells are kept in the store.
    """
    grid = make_grid(job, base, selection, input_folder)
    outcomes = render_grid(engine, grid, store, observer)
    if not measure_floor:
        return judge(job, outcomes, grid.recipes)
    floors = Floors(engine, {cell.place: cell for cell in grid.cells}, store, observer)
    return _ending(floors, judge(job, outcomes, grid.recipes, floors))


def _ending(floors: Floors, judged: Iterator[Judged]) -> Iterator[Judged]:
    """Passes cells on, and ends the floors' processes after the last one, or where something is raised."""
    try:
        yield from judged
    finally:
        floors.end()
