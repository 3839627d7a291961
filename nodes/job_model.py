"""A training job's model as a pipeline: its base, and the files that its config names, among the user's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..pipelines.errors import FileError, InputError
from ..pipelines.files.header import FileStamp
from ..pipelines.handle import Lease, PipelineHandle
from ..pipelines.models import find_model
from ..pipelines.weights.choice import DEFAULT, Choice
from ..pipelines.weights.untrusted_names import resolve_name
from ..pipelines.words import shown
from .load_model import chosen_checkpoint
from .shared import roots

if TYPE_CHECKING:
    from ..pipelines.jobs.job import TrainingJob
    from ..pipelines.observer import Observer

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def with_initial_lora(job: TrainingJob) -> TrainingJob:
    """The job with the LoRA that its training began with, where the user has the file in 'loras'."""

    def found(path: str) -> FileStamp | None:
        try:
            return FileStamp.of(resolve_name(_file_name(path), roots("loras"), "initial LoRA"))
        except FileError:
            return None  # the cells that need it say so

    return replace(
        job, checkpoints=tuple(replace(one, file=found(one.initial)) if one.initial else one for one in job.checkpoints)
    )


def job_pipeline(job: TrainingJob, weights: str, observer: Observer) -> tuple[PipelineHandle, list[str]]:
    """The model as a job loads it, and what of its config has to be supplied otherwise; a sentence each.

    Args:
        job: whose model.
        weights: as on Load AITK Model; ``default`` is the repository that the job names.
        observer: told of a download.

    Raises:
        InputError: the pack does not run the model, or the job's base is a path of the trainer's machine.
        FileError, HubError: the weights are not there, or are another model's.
    """
    from ..pipelines.jobs.model_section import wanted_model

    wanted = wanted_model(job.model)
    if not wanted.id:
        # its words name the models that there are
        find_model(job.model.arch)
    if wanted.problems:
        raise InputError(" ".join(wanted.problems))
    facts = find_model(wanted.id)
    repository = ""
    if weights == DEFAULT and wanted.base != facts.files.repository:
        if not _REPOSITORY.fullmatch(wanted.base):
            raise InputError(
                f"Job {shown(job.name)} was trained on {shown(wanted.base)}, which is on the trainer's machine. Set "
                "weights to the same model here."
            )
        repository = wanted.base
    checkpoint = chosen_checkpoint(facts, Choice(weights, repository), observer)
    pipeline = PipelineHandle(facts.id, checkpoint, wanted.dtype, wanted.options, lease=Lease())
    supplied = wanted.supplied or {}
    notes = [f"The job sets {key} to {shown(value)}, which this node does not load." for key, value in supplied.items()]
    if wanted.training_adapter:
        return _adapted(pipeline, wanted.training_adapter, notes)
    return pipeline, notes


def _adapted(pipeline: PipelineHandle, adapter: str, notes: list[str]) -> tuple[PipelineHandle, list[str]]:
    """The pipeline on its training adapter, where the user has the file."""
    from ..pipelines.lora.training_adapter import with_training_adapter

    name = _file_name(adapter)
    try:
        path = resolve_name(name, roots("loras"), "training adapter")
    except FileError:
        said = (
            f"The job trained with the adapter {shown(name)}, which is not in 'loras': the last bits differ without it."
        )
        return pipeline, [*notes, said]
    return with_training_adapter(pipeline, path, name, find_model(pipeline.model)), notes


def _file_name(path: str) -> str:
    """The last part of a path of the trainer's machine."""
    return PurePosixPath(path.replace("\\", "/")).name
