"""From a job and a selection to the cells of a grid. Headers are read, weights are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from ..errors import AITKError, FileError, InputError
from ..jobs.era import encoder_types_of, recipes_by_step
from ..jobs.merges import merges_before, restorable
from ..jobs.model_kwargs import options_of
from ..lora.file import open_lora
from ..models import find_model
from ..options import Chosen, Quantization
from ..run.request import MAX_SEED, SampleRequest
from ..words import shown
from .cell import Cell, Outcome, Place
from .control import ControlFolders, open_control_images

if TYPE_CHECKING:
    from pathlib import Path

    from ..files.header import FileStamp
    from ..handle import ControlImages, PipelineHandle
    from ..jobs.job import JobCheckpoint, JobSample, TrainingJob
    from ..lora.file import LoraFile
    from ..models.facts import ModelFacts
    from .selection import Selection


@dataclass(frozen=True, eq=False)
class Grid:
    """A replay, before anything is rendered.

    Attributes:
        cells: those that can be tried, in the order in which they are rendered: by checkpoint, then by strength.
        refused: places that cannot, with the reason.
        recipes: step -> names of those that the trainer may have rendered it by; the first is taken.
    """

    cells: tuple[Cell, ...]
    refused: tuple[Outcome, ...]
    recipes: Mapping[int, tuple[str, ...]]


def make_grid(job: TrainingJob, base: PipelineHandle, selection: Selection, input_folder: Path) -> Grid:
    """Decides every cell of a selection; what stands against one is that cell's error alone.

    Args:
        job: whose previews.
        base: the model as the job loads it, without the job's LoRA.
        selection: what of the job.
        input_folder: ComfyUI's, where control images may lie.
    """
    recipes = recipes_by_step(job, selection.checkpoints, find_model(base.model))
    folders, controls = ControlFolders(job.folder, input_folder), _Controls()
    cells: list[Cell] = []
    refused: list[Outcome] = []
    for checkpoint in selection.checkpoints:
        encoder = encoder_types_of(job, checkpoint)[0]
        for sample, strength in ((s, t) for t in selection.strengths for s in selection.at(checkpoint)):
            place = Place(checkpoint.step, sample.index, strength)
            try:
                own = _with_encoder(base, encoder) if job.model.encoder_types else base
                worn = _after_rounds(job, own, place)
                handle = _with_checkpoint(job, worn, checkpoint, sample.multiplier * strength)
                control = controls.of(sample.control_images, folders)
                recipe = recipes[place.step][0]
                options = _read(job, sample, find_model(base.model), recipe)
                cells.append(_cell(place, handle, sample, control, recipe, options))
            except AITKError as error:
                refused.append(Outcome(place, error=str(error)))
    return Grid(tuple(cells), tuple(refused), recipes)


class _Controls:
    """Samples' control images, read once for all checkpoints; or why they cannot be."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], ControlImages | AITKError | None] = {}

    def of(self, paths: tuple[str, ...], folders: ControlFolders) -> ControlImages | None:
        if paths not in self._found:
            try:
                self._found[paths] = open_control_images(paths, folders)
            except AITKError as error:
                self._found[paths] = error
        found = self._found[paths]
        if isinstance(found, AITKError):
            raise found
        return found


def _read(job: TrainingJob, sample: JobSample, facts: ModelFacts, recipe: str) -> Chosen:
    """What a job and its sample say otherwise than the defaults, of the options that the trainer read at a time."""
    said = dict(options_of(job.model).values) | dict(sample.recipe_options.values)
    defaults = {option.name: option.default for option in facts.recipe_options}
    read = facts.recipes[recipe].options
    return Chosen.of({name: value for name, value in said.items() if name in read and value != defaults[name]})


def _cell(
    place: Place,
    handle: PipelineHandle,
    sample: JobSample,
    control: ControlImages | None,
    recipe: str,
    options: Chosen,
) -> Cell:
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
        recipe_options=options,
    )
    return Cell(place, handle, request)


def _with_encoder(base: PipelineHandle, said: str) -> PipelineHandle:
    """The base with its text encoder as the checkpoint's version of AI Toolkit quantised it."""
    for known in get_args(Quantization):
        if known == said:
            return replace(base, options=replace(base.options, text_encoder_quantization=known))
    raise InputError(f"The text encoder was quantised to {shown(said)} then, which this pack does not have.")


def _after_rounds(job: TrainingJob, base: PipelineHandle, place: Place) -> PipelineHandle:
    """The base with what the trainer's earlier rounds left in it, where that can be made once more."""
    merges = merges_before(job, place.step, place.index)
    if not restorable(job, merges):
        return base
    for one in merges:
        if one.checkpoint.file is not None:
            lora = _opened(one.checkpoint.file, base)
            base = base.with_lora(replace(lora.spec(one.multiplier, "auto"), taken_off=True))
    return base


def _with_checkpoint(
    job: TrainingJob, base: PipelineHandle, checkpoint: JobCheckpoint, strength: float
) -> PipelineHandle:
    """The base with a checkpoint's LoRA, merged or live as AI Toolkit would have it in the job's own rounds."""
    if checkpoint.base:
        # a fresh LoRA adds nothing to a layer's output, and AI Toolkit merges nothing of it
        return base
    if checkpoint.file is None:
        if checkpoint.initial:
            raise FileError(
                f"Training began with the LoRA {shown(checkpoint.initial, 200)} (network.pretrained_lora_path), which "
                "is not in 'loras'. Put it there under that file's name, or choose another checkpoint."
            )
        name = shown(checkpoint.missing) if checkpoint.missing else f"of step {checkpoint.step}"
        raise FileError(
            f"The LoRA {name} is gone: the job keeps only its latest saves (max_step_saves_to_keep), or it was "
            "deleted. No other file can stand in for it; choose another checkpoint."
        )
    lora = _opened(checkpoint.file, base)
    # where the weights here are quantised and the job's are not, the engine decides
    return base.with_lora(lora.spec(strength, "auto" if job.merges else "live"))


def _opened(file: FileStamp, base: PipelineHandle) -> LoraFile:
    return open_lora(file.path, file.path.name, find_model(base.model), base.checkpoint)
