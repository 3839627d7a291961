"""A cell once more, with other kernels: how far our own code is from itself, which no verdict can claim less than."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..compare.floor import Rendering
from ..compare.pixels import read_picture
from ..engine.embeddings import Embeddings
from ..engine.encoded_pictures import PictureEncodings
from ..errors import AITKError
from ..run.run import Progress, prepare
from ..run.sample import sample
from .elsewhere import Elsewhere
from .kernels import Kernels, other_kernels
from .key import cell_key

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..observer import Observer
    from .cell import Cell, Place
    from .store import CellStore


class Floors:
    """Renders cells once more, from their texts on, and keeps them like any other.

    In this process what is merged is that of the cell: the floor is rather too low than too high.

    Args:
        engine: with the weights.
        cells: by their places.
        store: of finished cells.
        observer: told of it, asked for interruption.
    """

    def __init__(self, engine: Engine, cells: Mapping[Place, Cell], store: CellStore, observer: Observer) -> None:
        self._engine = engine
        self._cells = cells
        self._store = store
        self._observer = observer
        # what is encoded with other kernels is for them alone, and not for the disk
        self._encoded: dict[str, tuple[Embeddings, PictureEncodings]] = {}
        self._elsewhere: dict[str, Elsewhere] = {}

    def of(self, place: Place) -> Iterator[Rendering]:
        """The cell's picture with one kind of other kernels after the other, each rendered when it is asked for.

        Raises:
            Exception: whatever the observer raises to interrupt.
        """
        cell = self._cells[place]
        options = replace(cell.handle.options, embeddings_on_disk=False)
        cell = replace(cell, handle=replace(cell.handle, options=options))
        for kernels in other_kernels(self._engine.device):
            self._observer.stage(f"once more, {kernels.name}: {place}")
            self._observer.check()
            try:
                key = self._kept(cell, kernels)
            except AITKError as error:
                yield Rendering(kernels.name, None, str(error))
            else:
                yield Rendering(kernels.name, read_picture(self._store.picture(key)).pixels)

    def end(self) -> None:
        """Ends the processes that render for it."""
        for one in self._elsewhere.values():
            one.end()

    def _kept(self, cell: Cell, kernels: Kernels) -> str:
        """The key under which the store has the picture, rendered where it has not."""
        engine = self._engine
        with engine.turn(self._observer):
            progress = Progress(replace(engine.counters))
            run, _ = prepare(engine, cell.handle, cell.request, self._observer, progress)
            key = hashlib.sha256(f"{cell_key(run)}, {kernels.name}".encode()).hexdigest()
            if self._store.find(key) is None:
                if kernels.here is None:
                    elsewhere = self._elsewhere.setdefault(kernels.name, Elsewhere(kernels.environment))
                    self._store.keep(key, *elsewhere.render(cell, self._observer))
                else:
                    self._store.keep(key, *self._rendered_here(cell, kernels, run.wanted))
        return key

    def _rendered_here(self, cell: Cell, kernels: Kernels, wanted: Wanted) -> tuple[torch.Tensor, Mapping[str, object]]:
        assert kernels.here is not None
        engine, observer = self._engine, self._observer
        for part in wanted.model.facts.files.of_role("denoiser"):
            engine.apply_loras(wanted, part, observer)
        merged = engine.counters.tensors_merged
        encoded = self._encoded.setdefault(kernels.name, (Embeddings(), PictureEncodings()))
        try:
            with engine.using_encoded(*encoded), kernels.here():
                result = sample(engine, cell.handle, cell.request, observer)
        finally:
            if engine.counters.tensors_merged != merged:
                # a part came anew, and was merged with these kernels: no other run may find that
                engine.take_loras_off(wanted)
        return result.images[0], result.report
