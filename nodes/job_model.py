"""A training job's model as a pipeline: its base, and the files that its config names, among the user's own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..pipelines.errors import FileError, HubError, InputError
from ..pipelines.files.header import FileStamp
from ..pipelines.handle import Lease, PipelineHandle
from ..pipelines.models import find_model
from ..pipelines.weights.choice import DEFAULT, WEIGHTS, Choice, folders
from ..pipelines.weights.untrusted_names import resolve_name
from ..pipelines.words import shown
from .load_model import chosen_checkpoint
from .shared import roots

if TYPE_CHECKING:
    from pathlib import Path

    from ..pipelines.jobs.job import TrainingJob
    from ..pipelines.jobs.model_section import WantedModel
    from ..pipelines.models.facts import ModelFacts
    from ..pipelines.observer import Observer
    from ..pipelines.weights.source import Source


def with_initial_lora(job: TrainingJob) -> TrainingJob:
    """The job with the LoRA that its training began with, where the user has the file in 'loras'."""
    from ..pipelines.weights.elsewhere import last_name

    def found(path: str) -> FileStamp | None:
        try:
            return FileStamp.of(resolve_name(last_name(path), roots("loras"), "initial LoRA"))
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
    from ..pipelines.weights.hub import is_repository

    wanted = wanted_model(job.model)
    if not wanted.id:
        # its words name the models that there are
        find_model(job.model.arch)
    if wanted.problems:
        raise InputError(" ".join(wanted.problems))
    facts, notes = find_model(wanted.id), list(wanted.notes)
    repository = ""
    if weights == DEFAULT and wanted.base != facts.files.repository:
        if is_repository(wanted.base):
            repository = wanted.base
        else:
            weights = _own_name(wanted.base, job.name)
            notes.append(f"The job's base, {shown(wanted.base, 200)}, is taken to be {shown(weights)} here.")
    choice = Choice(weights, repository)
    elsewhere = _elsewhere(wanted, facts, choice, observer)
    checkpoint = chosen_checkpoint(facts, choice, observer, elsewhere)
    pipeline = PipelineHandle(facts.id, checkpoint, wanted.dtype, wanted.options, lease=Lease())
    if wanted.recovery_adapter:
        return _recovered(pipeline, wanted, observer), notes
    if wanted.training_adapter:
        return _adapted(pipeline, wanted.training_adapter, notes, observer)
    return pipeline, notes


def _own_name(base: str, job: str) -> str:
    """The name of a job's base, a path of the trainer's machine, in ComfyUI's folders."""
    from ..pipelines.weights.elsewhere import last_name

    try:
        resolve_name(last_name(base), folders(WEIGHTS, roots), "weights")
    except FileError as error:
        raise InputError(
            f"Job {shown(job)} was trained on {shown(base, 200)}, which is on the trainer's machine, and "
            f"{', '.join(repr(kind) for kind in WEIGHTS)} have no {shown(last_name(base))}. Set weights to the same "
            "model here."
        ) from error
    return last_name(base)


def _elsewhere(wanted: WantedModel, facts: ModelFacts, choice: Choice, observer: Observer) -> dict[str, Source]:
    """Part -> source of those that AI Toolkit does not take from the job's base."""
    from ..pipelines.weights.choose import local_sources
    from ..pipelines.weights.elsewhere import open_elsewhere
    from ..pipelines.weights.hub import fetch_from, fetch_part, is_repository

    files, found, base = facts.files, {}, None
    if choice.weights != DEFAULT:
        base = resolve_name(choice.weights, folders(WEIGHTS, roots), "weights")
    for key, named in wanted.elsewhere.items():
        rule = facts.job_files.parts[key]
        for part in rule.parts:
            if rule.base_first and base is not None and base.is_dir() and not is_repository(wanted.base):
                own = files.parts[part]
                if (base / (own.file or own.folder or part)).exists():
                    continue
            found[part] = open_elsewhere(named, part, files, roots, observer, key=key, alone=rule.alone)
    origin = wanted.base if is_repository(wanted.base) else facts.job_files.file_extras
    if base is not None and base.is_file():
        there = local_sources(files, choice, roots)
        for part in (one for one in files.parts if one not in (*there, *found)):
            own = files.parts[part]
            if own.repository is not None:
                found[part] = fetch_part(part, files, observer)
            elif origin:
                found[part] = fetch_from(origin, part, files, own.file, alone=bool(own.file), observer=observer)
    return found


def _adapted(
    pipeline: PipelineHandle, adapter: str, notes: list[str], observer: Observer
) -> tuple[PipelineHandle, list[str]]:
    """The pipeline on its training adapter, where the file can be had."""
    from ..pipelines.lora.training_adapter import with_training_adapter
    from ..pipelines.weights.elsewhere import last_name

    name = last_name(adapter)
    try:
        path = _adapter_file(adapter, "training adapter", observer)
    except (FileError, HubError):
        said = (
            f"The job trained with the adapter {shown(name)}, which is not in 'loras': the last bits differ without it."
        )
        return pipeline, [*notes, said]
    return with_training_adapter(pipeline, path, name, find_model(pipeline.model)), notes


def _recovered(pipeline: PipelineHandle, wanted: WantedModel, observer: Observer) -> PipelineHandle:
    """The pipeline on its recovery adapter, without which its pictures are others."""
    from ..pipelines.lora.recovery_adapter import with_recovery_adapter
    from ..pipelines.weights.elsewhere import last_name

    adapter, name = wanted.recovery_adapter, last_name(wanted.recovery_adapter)
    try:
        path = _adapter_file(adapter, "recovery adapter", observer)
    except (FileError, HubError) as error:
        # the hub's advice is about a model's folder
        why = f", and {str(error).partition('. ')[0]}" if isinstance(error, HubError) else ""
        raise FileError(
            f"The job's weights were quantised under the recovery adapter {shown(adapter, 200)} (model.qtype), without "
            f"which no picture is the trainer's. It is not in 'loras'{why}. Put it there as {shown(name)}."
        ) from error
    return with_recovery_adapter(pipeline, path, name, wanted.recovery_type, find_model(pipeline.model))


def _adapter_file(named: str, what: str, observer: Observer) -> Path:
    """A file that a job's config names: in 'loras', by its last name, or of a repository on the hub.

    Raises:
        FileError, HubError: it is in neither.
    """
    from ..pipelines.weights.elsewhere import last_name
    from ..pipelines.weights.hub import fetch_file

    try:
        return resolve_name(last_name(named), roots("loras"), what)
    except FileError:
        found = fetch_file(named, observer)
        if found is None:
            raise
        return found
