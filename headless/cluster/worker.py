"""One worker of a cluster's replay: its own engine, the job as its machine has it, and cells by their places."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...nodes.host import PlainHost, use_host
from ...nodes.job_model import job_pipeline, with_initial_lora
from ...nodes.sampler import engine
from ...pipelines.errors import AITKError
from ...pipelines.jobs.folder import open_job
from ...pipelines.replay.floor import other_studios
from ...pipelines.replay.grid import make_grid
from ...pipelines.replay.selection import select
from ...pipelines.replay.studio import Studio
from ...pipelines.replay.texts import TextsAhead
from .passport import USUAL, Passport

if TYPE_CHECKING:
    import torch

    from ...pipelines.parts.encoder import Embedding
    from ...pipelines.replay.cell import Cell, Place
    from .ticket import Ticket


@dataclass(frozen=True)
class Planned:
    """A place as a worker sees it: with key and steps, or with an error."""

    place: Place
    key: str = ""
    steps: int = 0
    error: str = ""


@dataclass(frozen=True)
class Begun:
    """What a worker found when it was told what is to be rendered.

    Attributes:
        failed: key -> why its texts could not be encoded.
        unlike: places whose key is another one here: the machine has another file.
        encoded: the embeddings of all texts, for the other workers; see :class:`...pipelines.replay.texts.TextsAhead`.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    unlike: Sequence[Place] = ()
    encoded: Sequence[Sequence[Embedding] | None] = ()


@dataclass(frozen=True)
class Rendered:
    """A picture as a PNG file with the report of its run; or an error."""

    picture: bytes = b""
    report: Mapping[str, Any] | None = None
    error: str = ""


class Doing:
    """An observer that keeps what was said last, for whoever asks; see :class:`...pipelines.observer.Observer`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._done = "", 0

    def now(self) -> tuple[str, int]:
        """What goes on, and how many steps of this cell are done."""
        with self._lock:
            return self._text, self._done

    def begin(self) -> None:
        with self._lock:
            self._text, self._done = "", 0

    def check(self) -> None:
        """Whoever interrupts a worker ends its process."""

    def stage(self, text: str) -> None:
        with self._lock:
            self._text = text

    def progress(self, text: str) -> None:
        self.stage(text)

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        with self._lock:
            self._text, self._done = f"{done} of {total} steps", done


class ReplayWorker:
    """Renders cells of one job.

    Args:
        ticket: what of which job.
        doing: told of all of it.

    Raises:
        AITKError: this machine has no such job or weights.
    """

    def __init__(self, ticket: Ticket, doing: Doing) -> None:
        folder = Path(ticket.job)
        host = PlainHost(Path(ticket.models), folder, folder, ticket.device)
        use_host(host)
        self._doing = doing
        job = self._job = with_initial_lora(open_job(folder))
        self._base, _ = job_pipeline(job, ticket.weights, doing)
        selection = select(job, ticket.checkpoints, ticket.samples, ticket.strengths)
        self._grid = make_grid(job, self._base, selection, host.input_folder())
        self._cells = {cell.place: cell for cell in self._grid.cells}
        self._engine = engine()
        self._studios = {USUAL: Studio(self._engine), **other_studios(self._engine)}
        self._keeping = ExitStack()

    def passport(self) -> Passport:
        return Passport.of_this_process(self._job, self._base, self._engine.device)

    def plan(self, places: Sequence[Place] | None, kernels: str) -> list[Planned]:
        """Decides cells without loading anything.

        Args:
            places: which; None is the whole grid.
            kernels: with which they are rendered, by name.
        """
        cells = self._grid.cells if places is None else [self._cells[place] for place in places]
        found = [] if places is not None else [Planned(one.place, error=one.error) for one in self._grid.refused]
        with self._studios[kernels].open(self._doing):
            found += [self._planned(cell, kernels) for cell in cells]
        return found

    def begin(
        self, waiting: Mapping[str, Place], kernels: str, encoded: Sequence[Sequence[Embedding] | None] | None
    ) -> Begun:
        """Makes ready for cells, any of which this worker may get.

        Args:
            waiting: their places by key.
            kernels: with which they are rendered, by name.
            encoded: what the first worker encoded of these cells' texts; None for the first, which does so.
        """
        studio, texts, unlike = self._studios[kernels], TextsAhead(), []
        with studio.open(self._doing):
            for key, place in waiting.items():
                try:
                    run, own = studio.prepared(self._cells[place], self._doing)
                except (AITKError, KeyError):
                    # a cell of the first worker's that is none here
                    unlike.append(place)
                    continue
                if own == key:
                    texts.add(key, run)
                else:
                    unlike.append(place)
            if unlike:
                return Begun(unlike=unlike)
            self._keeping.enter_context(self._engine.keeping_texts(texts.count))
            if encoded is not None:
                texts.give(self._engine, encoded)
                return Begun()
            failed = studio.encode(texts, self._doing)
            return Begun(failed, encoded=texts.encoded)

    def render(self, place: Place, kernels: str) -> Rendered:
        """Renders a cell; what is wrong with it is its own."""
        studio = self._studios[kernels]
        self._doing.begin()
        try:
            with studio.open(self._doing):
                return Rendered(*studio.rendered(self._cells[place], self._doing))
        except AITKError as error:
            return Rendered(error=str(error))

    def _planned(self, cell: Cell, kernels: str) -> Planned:
        try:
            run, key = self._studios[kernels].prepared(cell, self._doing)
        except AITKError as error:
            return Planned(cell.place, error=str(error))
        return Planned(cell.place, key, len(run.schedule.sigmas) - 1)
