"""Where cells are rendered: by the engine as it is, or with other kernels than it would take."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.embeddings import Embeddings
from ..engine.encoded_pictures import PictureEncodings
from ..run.run import Progress, prepare
from ..run.sample import sample
from .elsewhere import Elsewhere
from .key import cell_key

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..observer import Observer
    from ..run.run import Run
    from .cell import Cell
    from .kernels import Kernels
    from .texts import TextsAhead


class Studio:
    """Prepares and renders cells, one at a time.

    Args:
        engine: with the weights.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def open(self, observer: Observer) -> Iterator[None]:
        """Holds the engine for this studio's cells; the methods below are called in it, all but ``end``."""
        with self._engine.turn(observer):
            yield

    def prepared(self, cell: Cell, observer: Observer) -> tuple[Run, str]:
        """Decides everything of a cell and loads nothing; returns the run and the cell's key.

        Raises:
            AITKError: the cell cannot be rendered, e.g. because the model cannot make its texts.
        """
        progress = Progress(replace(self._engine.counters))
        run, _ = prepare(self._engine, cell.handle, cell.request, observer, progress)
        model = run.wanted.model
        model.texts(run.job)
        model.check_references(run.job)
        return run, cell_key(run)

    def encode(self, texts: TextsAhead, observer: Observer) -> dict[str, str]:
        """Encodes the texts of cells ahead; returns key -> error of those whose texts failed."""
        return dict(texts.encode(self._engine, observer))

    def rendered(self, cell: Cell, observer: Observer) -> tuple[bytes, dict[str, Any]]:
        """A cell's picture as a PNG file, and the report of its run.

        Raises:
            AITKError: it cannot be rendered; or whatever the observer raises to interrupt.
        """
        result = sample(self._engine, cell.handle, cell.request, observer)
        return _png(result.images[0]), result.report

    def end(self) -> None:
        """Ends what it started."""


def studio_with(engine: Engine, kernels: Kernels) -> Studio:
    """The studio that renders with other kernels, from the texts on; what it encodes is for nobody else."""
    return _Elsewhere(engine, kernels) if kernels.here is None else _Here(engine, kernels.name, kernels.here)


class _OtherKernels(Studio):
    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._name = name

    def prepared(self, cell: Cell, observer: Observer) -> tuple[Run, str]:
        # nothing of it is for the disk
        options = replace(cell.handle.options, embeddings_on_disk=False)
        run, key = super().prepared(replace(cell, handle=replace(cell.handle, options=options)), observer)
        return run, hashlib.sha256(f"{key}, {self._name}".encode()).hexdigest()


class _Here(_OtherKernels):
    """In this process, where what is merged is that of the cell: the floor is rather too low than too high."""

    def __init__(self, engine: Engine, name: str, here: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(engine, name)
        self._here = here
        self._encoded = Embeddings(), PictureEncodings()

    @contextmanager
    def open(self, observer: Observer) -> Iterator[None]:
        with super().open(observer), self._engine.using_encoded(*self._encoded):
            yield

    def encode(self, texts: TextsAhead, observer: Observer) -> dict[str, str]:
        return dict(texts.encode(self._engine, observer, partial(self._meanwhile, parts=(), observer=observer)))

    def rendered(self, cell: Cell, observer: Observer) -> tuple[bytes, dict[str, Any]]:
        run, _ = self.prepared(cell, observer)
        wanted = run.wanted
        with self._meanwhile(wanted, wanted.model.facts.files.of_role("denoiser"), observer):
            result = sample(self._engine, wanted.handle, cell.request, observer)
        return _png(result.images[0]), result.report

    @contextmanager
    def _meanwhile(self, wanted: Wanted, parts: Iterable[str], observer: Observer) -> Iterator[None]:
        """These kernels, but for the LoRAs of some parts, which are applied before."""
        engine = self._engine
        for part in parts:
            engine.apply_loras(wanted, part, observer)
        merged = engine.counters.tensors_merged
        try:
            with self._here():
                yield
        finally:
            if engine.counters.tensors_merged != merged:
                # a part came anew, and was merged with these kernels: no other run may find that
                engine.take_loras_off(wanted)


class _Elsewhere(_OtherKernels):
    """In a process of its own, which encodes and merges too."""

    def __init__(self, engine: Engine, kernels: Kernels) -> None:
        super().__init__(engine, kernels.name)
        self._process = Elsewhere(kernels.environment)

    def encode(self, texts: TextsAhead, observer: Observer) -> dict[str, str]:
        return {}

    def rendered(self, cell: Cell, observer: Observer) -> tuple[bytes, dict[str, Any]]:
        image, report = self._process.render(cell, observer)
        return _png(image), report

    def end(self) -> None:
        self._process.end()


def _png(image: torch.Tensor) -> bytes:
    """A PNG file of an image, [H, W, 3], 0..1, of whole 255ths."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((image * 255).round().byte().cpu().numpy()).save(file, "PNG")
    return file.getvalue()
