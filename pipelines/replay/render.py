"""Renders a grid: what is on the disk is taken from there, texts are encoded once, a cell's failure is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import AITKError
from .ledger import Ledger
from .progress import GridObserver
from .studio import Studio
from .texts import TextsAhead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..engine.engine import Engine
    from ..observer import Observer
    from .cell import Cell, Outcome, Place
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
    studio, ledger, texts = Studio(engine), Ledger(store), TextsAhead()
    for one in grid.refused:
        ledger.refuse(one.place, one.error)
    with studio.open(observer):
        observer.stage("looking at what is rendered already")
        for cell in grid.cells:
            observer.check()
            try:
                run, key = studio.prepared(cell, observer)
            except AITKError as error:
                ledger.refuse(cell.place, str(error))
                continue
            if ledger.add(cell.place, key, len(run.schedule.sigmas) - 1):
                texts.add(key, run)
        with engine.keeping_texts(texts.count):
            for key, error in studio.encode(texts, observer).items():
                ledger.fail(key, error)
            _render(studio, ledger, {cell.place: cell for cell in grid.cells}, observer)
    return ledger.outcomes()


def _render(studio: Studio, ledger: Ledger, cells: Mapping[Place, Cell], observer: Observer) -> None:
    """Renders what waits, in the order in which it was added."""
    waiting = ledger.waiting
    grid = GridObserver(observer, len(waiting), sum(one.steps for one in waiting.values()))
    for key, one in waiting.items():
        grid.begin(one.place, one.steps)
        try:
            ledger.keep(key, *studio.rendered(cells[one.place], grid))
        except AITKError as error:
            ledger.fail(key, str(error))
        grid.end()
