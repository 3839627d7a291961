"""Each outcome of a replay beside the trainer's own picture: a verdict, and what may make them differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compare.causes import causes
from ..compare.comparison import Verdict, compare_with_file
from ..compare.described import our_run, recorded_run
from ..compare.pixels import read_picture
from ..errors import FileError

if TYPE_CHECKING:
    from ..compare.causes import Cause
    from ..compare.comparison import Comparison
    from ..compare.pixels import Pixels
    from ..jobs.job import JobCheckpoint, JobPreview, JobSample, TrainingJob
    from .cell import Outcome
    from .floor import Floors


@dataclass(frozen=True, eq=False)
class Judged:
    """An outcome with its preview.

    Attributes:
        outcome: of a place.
        checkpoint, sample: the place's.
        preview: the trainer's picture; None where there is none, and at another strength than the job's own.
        comparison: None where one of the two is missing or cannot be read.
        causes: of a difference, likely ones first; none for identical pictures.
        problem: why the trainer's picture cannot be read; empty where it can.
    """

    outcome: Outcome
    checkpoint: JobCheckpoint
    sample: JobSample
    preview: JobPreview | None
    comparison: Comparison | None = None
    causes: tuple[Cause, ...] = ()
    problem: str = ""

    def ours(self) -> Pixels | None:
        """Our picture, uint8 [H, W, 3], read from its file."""
        return None if self.outcome.picture is None else read_picture(self.outcome.picture).pixels

    def trainers(self) -> Pixels | None:
        """The trainer's picture, likewise; None where it is missing or damaged."""
        return None if self.preview is None or self.problem else read_picture(self.preview.file.path).pixels


def judge(
    job: TrainingJob, outcomes: Iterable[Outcome], recipes: Sequence[str], floors: Floors | None = None
) -> Iterator[Judged]:
    """Compares each outcome with the job's preview, one at a time: their heat maps are large.

    Args:
        job: whose previews.
        outcomes: of :func:`.render.render_grid`, the base's before the others.
        recipes: those that the trainer may have used, by name.
        floors: renders a cell once more where its picture is not the trainer's; None has no verdict of kernel noise.
    """
    checkpoints = {one.step: one for one in job.checkpoints}
    samples = {one.index: one for one in job.samples}
    equal_bases: set[int] = set()
    for outcome in outcomes:
        place = outcome.place
        checkpoint, sample = checkpoints[place.step], samples[place.index]
        own = place.strength == 1 or place.step == 0
        preview = job.preview(place.step, place.index) if own else None
        if outcome.picture is None or preview is None:
            yield Judged(outcome, checkpoint, sample, preview)
            continue
        pixels = read_picture(outcome.picture).pixels
        try:
            others = () if floors is None else floors.of(place)
            comparison = compare_with_file(pixels, preview.file.path, others)
        except FileError as error:
            yield Judged(outcome, checkpoint, sample, preview, problem=str(error))
            continue
        identical = comparison.verdict is Verdict.IDENTICAL
        if identical and place.step == 0:
            equal_bases.add(place.index)
        size = read_picture(preview.file.path).pixels.shape
        recorded = recorded_run(job, sample, checkpoint, (size[1], size[0]), recipes)
        ours = our_run(outcome.report, (pixels.shape[1], pixels.shape[0]), job.save_dtype if place.step else None)
        kernels = comparison.floor.kernels if comparison.floor and comparison.verdict is Verdict.KERNEL_NOISE else ""
        base_is_equal = place.index in equal_bases
        found = () if identical else causes(recorded, ours, base_is_equal=base_is_equal, kernels=kernels)
        yield Judged(outcome, checkpoint, sample, preview, comparison, found)
