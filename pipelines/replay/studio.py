"""Where cells are rendered: by the engine as it is, or with other kernels than it would take."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engine.embeddings import Embeddings
from ..run.run import Progress, prepare
from ..run.sample import sample
from .key import cell_key

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..handle import PipelineHandle
    from ..observer import Observer
    from ..run.run import Run
    from .cell import Cell


class Studio:
    """Prepares and renders cells, one at a time.

    Args:
        engine: with the weights.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def open(self, observer: Observer) -> Iterator[None]:
        """Holds the engine for this studio's cells; the methods below are called in it."""
        with self._engine.turn(observer):
            yield

    def prepared(self, cell: Cell, observer: Observer) -> tuple[Run, str]:
        """Decides everything of a cell and loads nothing; returns the run and the cell's key.

        Raises:
            AITKError: the cell cannot be rendered, e.g. because the model cannot make its texts.
        """
        progress = Progress(replace(self._engine.counters))
        run, _ = prepare(self._engine, self._handle(cell), cell.request, observer, progress)
        model = run.wanted.model
        model.texts(run.job)
        model.check_references(run.job)
        return run, cell_key(run)

    def rendered(self, cell: Cell, observer: Observer) -> tuple[bytes, dict[str, Any]]:
        """A cell's picture as a PNG file, and the report of its run.

        Raises:
            AITKError: it cannot be rendered; or whatever the observer raises to interrupt.
        """
        result = sample(self._engine, self._handle(cell), cell.request, observer)
        return _png(result.images[0]), result.report

    def _handle(self, cell: Cell) -> PipelineHandle:
        return cell.handle


class OtherKernels(Studio):
    """Renders with other kernels, from the texts on. What is merged is that of the cell: see :mod:`.floor`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # each text once with other kernels, for no other run and not for the disk
        self._texts = Embeddings()

    @contextmanager
    def open(self, observer: Observer) -> Iterator[None]:
        with (
            super().open(observer),
            self._engine.using_texts(self._texts),
            other_kernels(self._engine.device),
        ):
            yield

    def _handle(self, cell: Cell) -> PipelineHandle:
        return replace(cell.handle, options=replace(cell.handle.options, embeddings_on_disk=False))


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


def _png(image: torch.Tensor) -> bytes:
    """A PNG file of an image, [H, W, 3], 0..1, of whole 255ths."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((image * 255).round().byte().cpu().numpy()).save(file, "PNG")
    return file.getvalue()
