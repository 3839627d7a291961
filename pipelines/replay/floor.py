"""A cell once more, with other kernels: how far our own code is from itself, which no verdict can claim less than."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..compare.floor import Rendering
from ..compare.pixels import read_picture
from ..errors import AITKError
from .kernels import other_kernels
from .studio import Studio, studio_with

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..observer import Observer
    from .cell import Cell, Place
    from .store import CellStore


def other_studios(engine: Engine) -> dict[str, Studio]:
    """A studio for each kind of other kernels that the engine's device has, by name, in the order of trying."""
    return {kernels.name: studio_with(engine, kernels) for kernels in other_kernels(engine.device)}


class Floors:
    """Renders cells once more when they are asked for, and keeps them like any other; see :class:`.judge.Renderings`.

    Args:
        engine: with the weights.
        cells: by their places.
        store: of finished cells.
        observer: told of it, asked for interruption.
    """

    def __init__(self, engine: Engine, cells: Mapping[Place, Cell], store: CellStore, observer: Observer) -> None:
        self._studios = other_studios(engine)
        self._cells = cells
        self._store = store
        self._observer = observer

    def of(self, place: Place) -> Iterator[Rendering]:
        """The cell's picture with one kind of other kernels after the other, each rendered when it is asked for.

        Raises:
            Exception: whatever the observer raises to interrupt.
        """
        for name, studio in self._studios.items():
            self._observer.stage(f"once more, {name}: {place}")
            self._observer.check()
            try:
                key = self._kept(self._cells[place], studio)
            except AITKError as error:
                yield Rendering(name, None, str(error))
            else:
                yield Rendering(name, read_picture(self._store.picture(key)).pixels)

    def end(self) -> None:
        """Ends the processes that render for it."""
        for studio in self._studios.values():
            studio.end()

    def _kept(self, cell: Cell, studio: Studio) -> str:
        """The key under which the store has the picture, rendered where it has not."""
        with studio.open(self._observer):
            _, key = studio.prepared(cell, self._observer)
            if self._store.find(key) is None:
                self._store.keep(key, *studio.rendered(cell, self._observer))
        return key
