"""Each outcome of a replay beside the trainer's own picture: a verdict, and what may make them differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..compare.causes import causes
from ..compare.comparison import Verdict, compare_with_file, needs_another
from ..compare.described import our_run, recorded_run
from ..compare.pixels import read_picture
from ..compare.undecided import undecided
from ..errors import FileError

if TYPE_CHECKING:
    from ..compare.causes import Cause, Described
    from ..compare.comparison import Comparison
    from ..compare.floor import Rendering
    from ..compare.pixels import Pixels
    from ..jobs.job import JobCheckpoint, JobPreview, JobSample, TrainingJob
    from .cell import Outcome, Place


class Renderings(Protocol):
    """Gives our pictures with other kernels."""

    def of(self, place: Place) -> Iterable[Rendering]:
        """A place's, with one kind of kernels after the other.

        Raises:
            Exception: whatever an observer raises to interrupt.
        """
        ...


@dataclass(frozen=True, eq=False)
class Judged:
    """An outcome with its preview.

    Attributes:
        outcome: of a place.
        checkpoint, sample: the place's.
        recipes: names of those that the trainer may have rendered it by; ours is the first.
        preview: the trainer's picture; None where there is none, and at another strength than the job's own.
        comparison: None where one of the two is missing or cannot be read.
        causes: of a difference, likely ones first; none for identical pictures.
        problem: why the trainer's picture cannot be read; empty where it can.
        renderings: our picture with other kernels, those that were tried.
    """

    outcome: Outcome
    checkpoint: JobCheckpoint
    sample: JobSample
    recipes: tuple[str, ...]
    preview: JobPreview | None
    comparison: Comparison | None = None
    causes: tuple[Cause, ...] = ()
    problem: str = ""
    renderings: tuple[Rendering, ...] = ()

    def ours(self) -> Pixels | None:
        """Our picture, uint8 [H, W, 3], read from its file."""
        return None if self.outcome.picture is None else read_picture(self.outcome.picture).pixels

    def trainers(self) -> Pixels | None:
        """The trainer's picture, likewise; None where it is missing or damaged."""
        return None if self.preview is None or self.problem else read_picture(self.preview.file.path).pixels


def judge(
    job: TrainingJob,
    outcomes: Iterable[Outcome],
    recipes: Mapping[int, tuple[str, ...]],
    floors: Renderings | None = None,
) -> Iterator[Judged]:
    """Compares each outcome with the job's preview, one at a time: their heat maps are large.

    Args:
        job: whose previews.
        outcomes: of :func:`.render.render_grid`, the base's before the others.
        recipes: step -> names of those that the trainer may have rendered it by.
        floors: asked where a picture is near the trainer's and not it; None has no verdict of kernel noise.
    """
    checkpoints = {one.step: one for one in job.checkpoints}
    equal_bases: set[int] = set()
    for outcome in outcomes:
        place = outcome.place
        checkpoint, possible = checkpoints[place.step], recipes[place.step]
        sample = next(one for one in job.samples_at(place.step) if one.index == place.index)
        preview = _preview(job, checkpoint, place)
        if outcome.picture is None or preview is None:
            yield Judged(outcome, checkpoint, sample, possible, preview)
            continue
        pixels, renderings = read_picture(outcome.picture).pixels, []
        try:
            others = () if floors is None else _noting(floors.of(place), renderings)
            comparison = compare_with_file(pixels, preview.file.path, others)
        except FileError as error:
            yield Judged(outcome, checkpoint, sample, possible, preview, problem=str(error))
            continue
        identical = comparison.verdict is Verdict.IDENTICAL
        if identical and checkpoint.base:
            equal_bases.add(place.index)
        size = read_picture(preview.file.path).pixels.shape
        recorded = recorded_run(job, sample, checkpoint, (size[1], size[0]), possible)
        saved = None if checkpoint.base or checkpoint.initial else job.save_dtype
        ours = our_run(outcome.report, (pixels.shape[1], pixels.shape[0]), saved)
        found = () if identical else _causes(job, checkpoint, recorded, ours, comparison, place.index in equal_bases)
        yield Judged(outcome, checkpoint, sample, possible, preview, comparison, found, renderings=tuple(renderings))


def near_places(job: TrainingJob, outcomes: Iterable[Outcome], floors: Renderings) -> Iterator[Place]:
    """The places for which :func:`judge` would ask for one more rendering than there are."""
    checkpoints = {one.step: one for one in job.checkpoints}
    for outcome in outcomes:
        place = outcome.place
        preview = _preview(job, checkpoints[place.step], place)
        if outcome.picture is None or preview is None:
            continue
        # what is wrong with a preview, the judge says
        with suppress(FileError):
            if needs_another(read_picture(outcome.picture).pixels, preview.file.path, floors.of(place)):
                yield place


def _noting(found: Iterable[Rendering], seen: list[Rendering]) -> Iterator[Rendering]:
    for one in found:
        seen.append(one)
        yield one


def _preview(job: TrainingJob, checkpoint: JobCheckpoint, place: Place) -> JobPreview | None:
    """The trainer's picture of a place; at another strength than the job's own only the base has one."""
    own = place.strength == 1 or checkpoint.base
    return job.preview(place.step, place.index) if own else None


def _causes(
    job: TrainingJob,
    checkpoint: JobCheckpoint,
    recorded: Described,
    ours: Described,
    comparison: Comparison,
    base_is_equal: bool,
) -> tuple[Cause, ...]:
    kernels = comparison.floor.kernels if comparison.floor and comparison.verdict is Verdict.KERNEL_NOISE else ""
    found = causes(recorded, ours, base_is_equal=base_is_equal, kernels=kernels)
    left_open = () if base_is_equal else undecided(job, checkpoint, ours)
    # what only may be comes after what differs
    return tuple(sorted((*found, *left_open), key=lambda cause: cause.standing))
