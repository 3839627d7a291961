"""From a job and a selection to the cells of a grid. Headers are read, weights are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AITKError, FileError, InputError
from ..lora.file import open_lora
from ..models import find_model
from ..models.recipe import TRAINER_PREVIEW
from ..run.request import MAX_SEED, SampleRequest
from ..words import shown
from .cell import Cell, Outcome, Place
from .control import ControlFolders, open_control_images

if TYPE_CHECKING:
    from pathlib import Path

    from ..handle import ControlImages, PipelineHandle
    from ..jobs.job import JobCheckpoint, JobSample, TrainingJob
    from .selection import Selection


@dataclass(frozen=True, eq=False)
class Grid:
    """A replay, before anything is rendered.

    Attributes:
        cells: those that can be tried, in the order in which they are rendered: by checkpoint, then by strength.
        refused: places that cannot, with the reason.
    """

    cells: tuple[Cell, ...]
    refused: tuple[Outcome, ...]


def make_grid(
    job: TrainingJob, base: PipelineHandle, selection: Selection, input_folder: Path, recipe: str = TRAINER_PREVIEW
) -> Grid:
    """Decides every cell of a selection; what stands against one is that cell's error alone.

    Args:
        job: whose previews.
        base: the model as the job loads it, without the job's LoRA.
        selection: what of the job.
        input_folder: ComfyUI's, where control images may lie.
        recipe: of the model, e.g. that of the trainer at another time.
    """
    controls = {one.index: _control(one, ControlFolders(job.folder, input_folder)) for one in selection.samples}
    cells: list[Cell] = []
    refused: list[Outcome] = []
    for checkpoint in selection.checkpoints:
        for sample, strength in ((s, t) for t in selection.strengths for s in selection.samples):
            place = Place(checkpoint.step, sample.index, strength)
            try:
                handle = _with_checkpoint(job, base, checkpoint, sample.multiplier * strength)
                cells.append(_cell(place, handle, sample, controls[sample.index], recipe))
            except AITKError as error:
                refused.append(Outcome(place, error=str(error)))
    return Grid(tuple(cells), tuple(refused))


def _control(sample: JobSample, folders: ControlFolders) -> ControlImages | AITKError | None:
    """A sample's pictures, read once for all checkpoints; or why they cannot be."""
    try:
        return open_control_images(sample.control_images, folders)
    except AITKError as error:
        return error


def _cell(
    place: Place, handle: PipelineHandle, sample: JobSample, control: ControlImages | AITKError | None, recipe: str
) -> Cell:
    if isinstance(control, AITKError):
        raise control
    if sample.problem:
        raise InputError(f"Sample {sample.index} cannot be rendered as the trainer did. {sample.problem}")
    if sample.seed is None:
        raise InputError(
            f"Sample {sample.index} has a seed that the trainer drew and kept nowhere: set one in the job."
        )
    if sample.negative_prompt is None:
        raise InputError(
            f"Sample {sample.index} has no negative prompt, at which the trainer dies. Set neg in the job's sample "
            "section, e.g. to ''."
        )
    request = SampleRequest(
        recipe=recipe,
        prompt=sample.prompt,
        negative_prompt=sample.negative_prompt,
        width=sample.width,
        height=sample.height,
        steps=sample.steps,
        guidance_scale=sample.guidance_scale,
        # torch takes -1 for the largest, and so on down
        seed=sample.seed + MAX_SEED + 1 if sample.seed < 0 else sample.seed,
        control=control,
    )
    return Cell(place, handle, request)


def _with_checkpoint(
    job: TrainingJob, base: PipelineHandle, checkpoint: JobCheckpoint, strength: float
) -> PipelineHandle:
    """The base with a checkpoint's LoRA, merged or live as AI Toolkit would have it in the job's own rounds."""
    if checkpoint.file is None:
        if checkpoint.step == 0:
            return base
        name = shown(checkpoint.missing) if checkpoint.missing else f"of step {checkpoint.step}"
        raise FileError(
            f"The LoRA {name} is gone: the job keeps only its latest saves (max_step_saves_to_keep), or it was "
            "deleted. No other file can stand in for it; choose another checkpoint."
        )
    path = checkpoint.file.path
    lora = open_lora(path, path.name, find_model(base.model), base.checkpoint)
    # where the weights here are quantised and the job's are not, the engine decides
    return base.with_lora(lora.spec(strength, "auto" if job.merges else "live"))
