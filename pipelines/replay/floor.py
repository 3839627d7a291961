"""A cell once more, with other kernels: how far our own code is from itself, which no verdict can claim less than."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..compare.pixels import read_picture
from ..engine.embeddings import Embeddings
from ..run.run import Progress, prepare
from ..run.sample import sample
from .key import cell_key

if TYPE_CHECKING:
    from ..compare.pixels import Pixels
    from ..engine.engine import Engine
    from ..observer import Observer
    from .cell import Cell, Place
    from .store import CellStore


class Floors:
    """Renders cells once more, from their texts on, and keeps them like any other.

    What is merged is that of the cell: the floor is rather too low than too high.

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
        # each text once with other kernels, for no other run and not for the disk
        self._texts = Embeddings()

    def of(self, place: Place) -> Pixels:
        """The cell's picture with other kernels, uint8 [H, W, 3].

        Raises:
            AITKError: it cannot be rendered; or whatever the observer raises to interrupt.
        """
        cell = self._cells[place]
        handle = replace(cell.handle, options=replace(cell.handle.options, embeddings_on_disk=False))
        self._observer.stage(f"once more with other kernels: {place}")
        with (
            self._engine.turn(self._observer),
            self._engine.using_texts(self._texts),
            other_kernels(self._engine.device),
        ):
            progress = Progress(replace(self._engine.counters))
            run, _ = prepare(self._engine, handle, cell.request, self._observer, progress)
            key = cell_key(run)
            if self._store.find(key) is None:
                result = sample(self._engine, handle, cell.request, self._observer)
                self._store.keep(key, result.images[0], result.report)
        return read_picture(self._store.picture(key)).pixels


@contextmanager
def other_kernels(device: str) -> Iterator[None]:
    """Has torch take other kernels than it would: on a GPU for attention and sums, on a CPU none of oneDNN's."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as contexts:
        if device.startswith("cuda"):
            contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
            matmul = torch.backends.cuda.matmul
            before = matmul.allow_bf16_reduced_precision_reduction
            contexts.callback(setattr, matmul, "allow_bf16_reduced_precision_reduction", before)
            matmul.allow_bf16_reduced_precision_reduction = not before
        else:
            contexts.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
            torch.backends.mkldnn.enabled = False
        yield
