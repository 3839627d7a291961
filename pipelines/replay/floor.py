"""A cell once more, with other kernels: how far our own code is from itself, which no verdict can claim less than."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from ..compare.pixels import read_picture
from .studio import OtherKernels

if TYPE_CHECKING:
    from ..compare.pixels import Pixels
    from ..engine.engine import Engine
    from ..observer import Observer
    from .cell import Cell, Place
    from .store import CellStore


class Floor(Protocol):
    """Gives pictures with other kernels."""

    def of(self, place: Place) -> Pixels:
        """The place's picture with other kernels, uint8 [H, W, 3].

        Raises:
            AITKError: it cannot be rendered; or whatever an observer raises to interrupt.
        """
        ...


class Floors:
    """Renders cells once more when they are asked for, and keeps them like any other; see :class:`Floor`.

    What is merged is that of the cell: the floor is rather too low than too high.

    Args:
        engine: with the weights.
        cells: by their places.
        store: of finished cells.
        observer: told of it, asked for interruption.
    """

    def __init__(self, engine: Engine, cells: Mapping[Place, Cell], store: CellStore, observer: Observer) -> None:
        self._studio = OtherKernels(engine)
        self._cells = cells
        self._store = store
        self._observer = observer

    def of(self, place: Place) -> Pixels:
        cell = self._cells[place]
        self._observer.stage(f"once more with other kernels: {place}")
        with self._studio.open(self._observer):
            _, key = self._studio.prepared(cell, self._observer)
            if self._store.find(key) is None:
                self._store.keep(key, *self._studio.rendered(cell, self._observer))
        return read_picture(self._store.picture(key)).pixels
