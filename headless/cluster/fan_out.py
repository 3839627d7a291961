"""A replay whose cells a cluster renders: from its beginning to its verdicts, as ``pipelines/replay/replay.py`` is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...pipelines.compare.pixels import read_picture
from ...pipelines.errors import FileError
from ...pipelines.jobs.era import recipes_by_step
from ...pipelines.models import find_model
from ...pipelines.replay.judge import Judged, judge, near_places

if TYPE_CHECKING:
    from ...pipelines.compare.pixels import Pixels
    from ...pipelines.handle import PipelineHandle
    from ...pipelines.jobs.job import TrainingJob
    from ...pipelines.replay.cell import Outcome, Place
    from ...pipelines.replay.store import CellStore
    from .crew import Crew


class _RenderedFloors:
    """Pictures with other kernels that are rendered already; see :class:`...pipelines.replay.floor.Floor`."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes = {one.place: one for one in outcomes}

    def of(self, place: Place) -> Pixels:
        one = self._outcomes[place]
        if one.picture is None:
            raise FileError(one.error)
        return read_picture(one.picture).pixels


def replay_on(
    crew: Crew, job: TrainingJob, base: PipelineHandle, store: CellStore, *, measure_floor: bool
) -> Iterator[Judged]:
    """Has a crew render a job's cells, then compares them here, one at a time.

    With ``measure_floor`` all pictures that are near the trainer's are rendered once more before that, by the crew too.

    Raises:
        Exception: whatever the crew's observer raises to interrupt; finished cells are kept in the store.
    """
    outcomes = crew.render(store, None, otherwise=False)
    near = list(near_places(job, outcomes)) if measure_floor else []
    floors = _RenderedFloors(crew.render(store, near, otherwise=True) if near else ())
    recipes = recipes_by_step(job, job.checkpoints, find_model(base.model))
    return judge(job, outcomes, recipes, floors if measure_floor else None)
