"""A replay whose cells a cluster renders: from its beginning to its verdicts, as ``pipelines/replay/replay.py`` is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ...pipelines.compare.floor import Rendering
from ...pipelines.compare.pixels import read_picture
from ...pipelines.jobs.era import recipes_by_step
from ...pipelines.models import find_model
from ...pipelines.replay.judge import Judged, judge, near_places

if TYPE_CHECKING:
    from ...pipelines.handle import PipelineHandle
    from ...pipelines.jobs.job import TrainingJob
    from ...pipelines.replay.cell import Outcome, Place
    from ...pipelines.replay.store import CellStore
    from .crew import Crew


class _RenderedFloors:
    """Pictures with other kernels, as far as they are rendered; see :class:`...pipelines.replay.judge.Renderings`."""

    def __init__(self) -> None:
        self._found: dict[str, dict[Place, Outcome]] = {}

    def add(self, kernels: str, outcomes: Iterable[Outcome]) -> None:
        """Adds those of one kind of kernels, which come after those that are there."""
        self._found[kernels] = {one.place: one for one in outcomes}

    def of(self, place: Place) -> Iterator[Rendering]:
        for kernels, outcomes in self._found.items():
            if (one := outcomes.get(place)) is not None:
                pixels = None if one.picture is None else read_picture(one.picture).pixels
                yield Rendering(kernels, pixels, one.error)


def replay_on(
    crew: Crew, job: TrainingJob, base: PipelineHandle, store: CellStore, *, measure_floor: bool
) -> Iterator[Judged]:
    """Has a crew render a job's cells, then compares them here, one at a time.

    With ``measure_floor`` the crew renders again, before that, what is near the trainer's picture and not it: with one
    kind of other kernels after the other, as a replay here does.

    Raises:
        Exception: whatever the crew's observer raises to interrupt; finished cells are kept in the store.
    """
    outcomes = crew.render(store, None)
    floors = _floors(crew, job, store, outcomes) if measure_floor else None
    return judge(job, outcomes, recipes_by_step(job, job.checkpoints, find_model(base.model)), floors)


def _floors(crew: Crew, job: TrainingJob, store: CellStore, outcomes: Sequence[Outcome]) -> _RenderedFloors:
    """Renders with other kernels what needs them, until they explain the difference, or none are left."""
    floors, left = _RenderedFloors(), outcomes
    for kernels in crew.other_kernels:
        asked = set(near_places(job, left, floors))
        if not asked:
            break
        left = [one for one in left if one.place in asked]
        floors.add(kernels, crew.render(store, [one.place for one in left], kernels))
    return floors
