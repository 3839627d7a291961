"""A training job's folder, read: its config, the trainer's previews, and the LoRAs that it saved.

``output/<name>`` of AI Toolkit holds ``config.yaml``, written when the training began; ``.job_config.json``, where the
web interface started it; ``samples/``; and ``<name>_<step>.safetensors`` beside ``<name>.safetensors``, the last. Links
that lead out of the folder are not followed: a job's folder may come from anybody.

Sources: AI Toolkit BaseSDTrainProcess.py sample and save, BaseTrainProcess.py save_training_config,
ui/cron/actions/startJob.ts (27a03a91).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.header import FileStamp
from ..models.recipe import TRAINER_PREVIEW
from ..words import shown
from .architecture import facts_of
from .beginning import Section, read_beginning, rounds_at_start, samples_of_step_0
from .config_text import object_or_empty, parse_json, parse_yaml, plain
from .job import TrainingJob
from .job_samples import job_samples, of_sampler
from .merges import lost_merges
from .model_section import DTYPES, read_model
from .previews import find_pictures, inside, latest
from .restarts import read_restarts
from .rounds import find_rounds
from .sample_section import SampleRound, TrainerRefusal, read_section
from .saves import find_saves

if TYPE_CHECKING:
    from .job import Format, JobPreview, JobSample

_CONFIG, _INTERFACE_CONFIG, _ENGINE = "config.yaml", ".job_config.json", "engine.json"
_LARGEST_CONFIG = 64 << 20  # bytes
_CHOOSE = "Choose the folder that AI Toolkit made for a training job, output/<name of the job>."
# the process types that train and take previews; the others generate, caption, serve or convert
_TRAINERS = frozenset(
    (
        *("diffusion_trainer", "sd_trainer", "ui_trainer", "textual_inversion_trainer", "concept_slider"),
        *("concept_replacer", "image_reference_slider_trainer", "ultimate_slider_trainer"),
    )
)
_ENGINE_TYPE = "InferenceEngine"
_FORMATS: dict[str, Format] = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
_VARIABLE = re.compile(r"\$\{[^}\n]+\}")  # config.yaml has them filled in already
_MOST_NAMED = 5


def open_job(folder: Path) -> TrainingJob:
    """Reads a training job's folder. Pictures and weights are only listed.

    Raises:
        FileError: it is no folder of a training job, or its config cannot be read.
    """
    notes: list[str] = []
    config = _read_config(folder, notes)
    name, process = _trainer(config, folder, notes)
    train, save = object_or_empty(process.get("train")), object_or_empty(process.get("save"))
    pictures = find_pictures(folder, notes)
    previews = latest(pictures)
    begin = read_beginning(process, train, notes)
    saves = find_saves(
        folder, name, begin, _whole(train.get("steps", 1000)), _whole(save.get("save_every", 1000)), notes
    )
    model, of_model = read_model(process, saves.trained_with)
    notes += of_model
    facts = facts_of(model)
    recipe = facts.recipes[TRAINER_PREVIEW] if facts else None
    control_images, options = (recipe.control_images, recipe.options) if recipe else (3, ())
    sections: tuple[Section, ...] = ("sample", "first_sample")
    rounds = {key: _round(process, key, notes) for key in sections}
    samples: dict[Section, tuple[JobSample, ...]] = {
        key: of_sampler(
            job_samples(rounds[key], control_images, options),
            rounds[key].sampler,
            train.get("noise_scheduler", "ddpm"),
            facts,
        )
        for key in sections
    }
    own_first = process.get("first_sample") is not None
    at_start = rounds_at_start(train, own_first, begin.step)
    first_samples = samples_of_step_0(at_start, samples)
    steps = sorted({one.step for one in previews} | set(saves.steps))
    _note_gaps(previews, samples["sample"], first_samples, notes)
    restarts = read_restarts(folder, notes)
    job = TrainingJob(
        name=name,
        folder=folder,
        model=model,
        samples=samples["sample"],
        first_samples=first_samples,
        one_multiplier=rounds["sample"].one_multiplier,
        # of both rounds: AI Toolkit takes the ending from the section `sample`
        format=_format(rounds["sample"].extension, notes),
        checkpoints=tuple(saves.checkpoint(step, notes) for step in steps),
        previews=previews,
        save_dtype=_save_dtype(save.get("dtype", "float16")),
        trained_with=saves.trained_with,
        samples_on_resume=bool(train.get("force_first_sample")),
        network_type=_network_type(process),
        notes=tuple(notes),
    )
    found = find_rounds(
        pictures,
        {key: rounds[key].multiplier if job.can_merge else None for key in sections},
        [section for step, section in at_start if step == 0],
        restarts,
        samples_on_resume=job.samples_on_resume,
    )
    job = replace(job, rounds=found)
    return replace(job, notes=(*job.notes, *lost_merges(job)))


def _read_config(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise FileError(f"{folder.name!r} is no folder. {_CHOOSE}")
    for name, parse in ((_CONFIG, parse_yaml), (_INTERFACE_CONFIG, parse_json)):
        path = folder / name
        if inside(path, folder):
            text = _read_text(path)
            config = parse(text, f"{name} of {folder.name!r}")
            if _VARIABLE.search(text):
                notes.append(f"{name} has names of environment variables in it, whose values are not in the folder.")
            if not isinstance(config, Mapping):
                raise FileError(f"{name} of {folder.name!r} is no config of a job: it holds no keys. {_CHOOSE}")
            return config
    if (folder / _ENGINE).is_file():
        raise FileError(f"{folder.name!r} is the folder of AI Toolkit's inference engine, not of a training. {_CHOOSE}")
    raise FileError(f"{folder.name!r} has neither {_CONFIG} nor {_INTERFACE_CONFIG}: it is no job's folder. {_CHOOSE}")


def _read_text(path: Path) -> str:
    size = FileStamp.of(path).size
    if size > _LARGEST_CONFIG:
        raise FileError(f"{path.name} of {path.parent.name!r} has {size:,} bytes: it is no job's config. {_CHOOSE}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path.name} of {path.parent.name!r} cannot be read as text. {_CHOOSE}") from error


def _trainer(config: Mapping[str, Any], folder: Path, notes: list[str]) -> tuple[str, Mapping[str, Any]]:
    """The job's name, and its first process that trains."""
    section = config.get("config")
    name = section.get("name") if isinstance(section, Mapping) else None
    where = f"The config of {folder.name!r}"
    if not isinstance(section, Mapping) or not isinstance(name, str) or not name:
        raise FileError(f"{where} has no config.name: it is no config of a job. {_CHOOSE}")
    try:
        processes = plain(section, name).get("process")
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{where} has a value that AI Toolkit cannot read: {str(error)[:200]}.") from error
    listed = processes if isinstance(processes, list) else []
    found = [one for one in listed if isinstance(one, Mapping)]
    types = [shown(one.get("type")) for one in found]
    if any(one.get("type") == _ENGINE_TYPE for one in found):
        raise FileError(f"{where} is that of AI Toolkit's inference engine, not of a training. {_CHOOSE}")
    known = [one for one in found if one.get("type") in _TRAINERS]
    # forks have trainers of their own
    trainers = known or [one for one in found if {"train", "model", "sample"} <= one.keys()]
    if not trainers:
        raise FileError(
            f"{where} trains nothing: its processes are {', '.join(types[:_MOST_NAMED]) or 'none'}. {_CHOOSE}"
        )
    if not known:
        notes.append(f"The job's process {shown(trainers[0].get('type'))} is unknown; it is read as AI Toolkit's own.")
    if len(trainers) > 1:
        notes.append(f"The job has {len(trainers)} processes that train; the first is read.")
    if "network" not in trainers[0]:
        notes.append("The job has no network section: it trains whole weights, which are no LoRA.")
    return name, trainers[0]


def _network_type(process: Mapping[str, Any]) -> str:
    said = object_or_empty(process.get("network")).get("type", "lora")
    return said.lower() if isinstance(said, str) else shown(said)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _round(process: Mapping[str, Any], key: str, notes: list[str]) -> SampleRound:
    """A sample section; an empty one where AI Toolkit cannot read it, with a note."""
    section = process.get(key)
    if section is None and key == "first_sample":
        return SampleRound((), None, None)
    try:
        found = read_section(section, process.get("trigger_word"))
    except TrainerRefusal as refusal:
        notes.append(f"AI Toolkit cannot read the job's {key} section ({refusal.kind}: {refusal.text[:200]}).")
        return SampleRound((), "jpg", None)
    if found.refusal is not None:
        notes.append(
            f"AI Toolkit renders no picture of the job's {key} section: it stops at one of its samples "
            f"({found.refusal.kind}: {found.refusal.text[:200]})."
        )
    return found


def _format(extension: Any, notes: list[str]) -> Format:
    found = _FORMATS.get(extension.lower()) if isinstance(extension, str) else None
    if found is None:
        notes.append(f"The job's pictures are of the format {shown(extension)}; ours are compared as png.")
    return found or "png"


def _save_dtype(value: Any) -> str:
    return DTYPES.get(value, value) if isinstance(value, str) else shown(value)


def _note_gaps(
    previews: tuple[JobPreview, ...],
    samples: tuple[JobSample, ...],
    first_samples: tuple[JobSample, ...],
    notes: list[str],
) -> None:
    """Says which pictures of a round are gone, and which no sample stands for."""
    indices: dict[int, set[int]] = {}
    for one in previews:
        indices.setdefault(one.step, set()).add(one.index)
    strange: set[int] = set()
    for step, found in indices.items():
        wanted = {sample.index for sample in (samples if step else first_samples)}
        if gone := wanted - found:
            notes.append(f"Of step {step} {_pictures(gone)} missing.")
        strange |= found - wanted if wanted else set()
    if strange:
        named = _pictures(strange).rpartition(" ")[0]
        notes.append(f"The config has no sample for {named}: it was changed after they were rendered.")


def _pictures(indices: set[int]) -> str:
    named = ", ".join(str(one) for one in sorted(indices)[:_MOST_NAMED])
    more = f" and {len(indices) - _MOST_NAMED} more" if len(indices) > _MOST_NAMED else ""
    return f"picture {named} is" if len(indices) == 1 else f"pictures {named}{more} are"
