"""A run as far as it is described: the trainer's by its job's folder, ours by the sampler's report.

What neither says is unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..jobs.era import encoder_types_of
from ..jobs.merges import merges_before
from ..jobs.model_section import unmatched, wanted_model
from ..jobs.quantisation import NO_TYPE
from ..run.request import MAX_SEED
from ..weights.elsewhere import last_name

if TYPE_CHECKING:
    from ..jobs.job import JobCheckpoint, JobSample, TrainingJob

_FULL = "float32"  # of the LoRA's weights while the trainer trains
# of what decides the numbers, the libraries that a trainer has too
_LIBRARIES = ("torch", "diffusers", "transformers", "optimum-quanto", "torchao")


@dataclass(frozen=True)
class Described:
    """A run as far as it is described; None is unknown, of the trainer's and of ours alike.

    Attributes:
        model: AI Toolkit's arch.
        weights: of the base, by name.
        fingerprint: of the base's files.
        extras: other keys of the job's model section that change what is loaded.
        dtype: of the run.
        denoiser_quantization, encoder_quantization: AI Toolkit's type, ``none`` without.
        recipes: the ways to sample that it may have been, by name; one where it is certain, none where unknown.
        loras: file's name -> strength, None where that is unknown; a training adapter is one of them.
        lora_dtype: of the LoRA's values as they were applied.
        lora_application: ``merged`` or ``live``, of the job's LoRA.
        merges_before: the multipliers at which LoRAs had been merged into these weights, and taken off, before.
        size: of the picture, width and height in pixels.
        prompt, negative_prompt, steps, guidance_scale, seed: the request.
        control_images: how many.
        step_caching: whether steps left out blocks.
        attention: the backend.
        device: e.g. ``cpu``.
        versions: library -> version; those unknown are left out.
    """

    model: str | None = None
    weights: str | None = None
    fingerprint: str | None = None
    extras: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None
    denoiser_quantization: str | None = None
    encoder_quantization: str | None = None
    recipes: tuple[str, ...] = ()
    loras: Mapping[str, float | None] | None = None
    lora_dtype: str | None = None
    lora_application: str | None = None
    merges_before: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    control_images: int | None = None
    step_caching: bool | None = None
    attention: str | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def recorded_run(
    job: TrainingJob,
    sample: JobSample,
    checkpoint: JobCheckpoint,
    size: tuple[int, int] | None,
    recipes: Sequence[str] = (),
) -> Described:
    """What a job's folder says of one of its previews.

    Args:
        sample: its settings.
        checkpoint: its step.
        size: of the trainer's picture, where there is one.
        recipes: which of the model's recipes the trainer's may be; empty where nobody looked.
    """
    # with nothing of it, how it is held decides nothing
    applied = not checkpoint.base and sample.multiplier != 0
    return Described(
        model=job.model.arch,
        weights=job.model.name_or_path,
        extras=unmatched(job.model),
        dtype=job.model.dtype,
        denoiser_quantization=_denoiser_type(job),
        encoder_quantization=encoder_types_of(job, checkpoint)[0],
        recipes=tuple(recipes),
        loras=_recorded_loras(job, sample, checkpoint),
        # where training began with a LoRA, its first previews are of that file
        lora_dtype=_FULL if applied and not checkpoint.initial else None,
        lora_application=("merged" if job.merges else "live") if applied else None,
        merges_before=tuple(one.multiplier for one in merges_before(job, checkpoint.step, sample.index)),
        size=size,
        prompt=sample.prompt,
        negative_prompt=sample.negative_prompt,
        steps=sample.steps,
        guidance_scale=sample.guidance_scale,
        # torch counts negative ones down from its largest
        seed=None if sample.seed is None else sample.seed % (MAX_SEED + 1),
        control_images=len(sample.control_images),
        step_caching=False,
    )


def our_run(report: Mapping[str, Any], size: tuple[int, int] | None, lora_dtype: str | None = None) -> Described:
    """What the sampler's report says of our picture.

    Args:
        report: see ``pipelines/run/report.py``; of another schema, what is not found is unknown.
        size: of our picture as it is compared.
        lora_dtype: of the values in the LoRA's file; None where it is unknown.
    """
    model, quantization = report.get("model") or {}, (report.get("model") or {}).get("quantization") or {}
    listed = report.get("loras")
    loras = None if listed is None else [lora for lora in listed if not lora.get("taken_off")]
    recipe, controls = report.get("recipe"), report.get("control_images")
    return Described(
        model=model.get("id"),
        weights=_names(model.get("weights")),
        fingerprint=model.get("fingerprint"),
        dtype=model.get("dtype"),
        denoiser_quantization=quantization.get("transformer"),
        encoder_quantization=quantization.get("text_encoder"),
        recipes=() if recipe is None else (recipe,),
        loras=None if loras is None else {lora["name"].rpartition("/")[2]: lora["strength"] for lora in loras},
        lora_dtype=lora_dtype,
        lora_application=_application(loras or []),
        merges_before=None if listed is None else _taken_off(listed),
        size=size,
        prompt=report.get("prompt"),
        negative_prompt=report.get("negative_prompt"),
        steps=report.get("steps"),
        guidance_scale=report.get("guidance_scale"),
        seed=report.get("seed"),
        control_images=None if controls is None else len(controls),
        step_caching=report.get("step_caching") is not None if "step_caching" in report else None,
        attention=model.get("transformer_attention"),
        device=report.get("device"),
        versions={name: text for name, text in (report.get("versions") or {}).items() if name in _LIBRARIES},
    )


def _recorded_loras(
    job: TrainingJob, sample: JobSample, checkpoint: JobCheckpoint
) -> Mapping[str, float | None] | None:
    name = checkpoint.missing if checkpoint.file is None else checkpoint.file.path.name
    if not checkpoint.base and not name:
        # a step that was never saved has a LoRA without a name
        return None
    wanted = wanted_model(job.model)
    adapters = [last_name(one) for one in (wanted.training_adapter, wanted.recovery_adapter) if one]
    return ({name: sample.multiplier} if name else {}) | dict.fromkeys(adapters)


def _denoiser_type(job: TrainingJob) -> str:
    said = job.model.quantization.get("denoiser", "none")
    return "none" if said == NO_TYPE else said


def _taken_off(loras: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """The multipliers of what earlier rounds left in our weights."""
    return tuple(lora["strength"] for lora in loras if lora.get("taken_off") and lora["application"] != "not applied")


def _application(loras: Sequence[Mapping[str, Any]]) -> str | None:
    """How the last LoRA of a report is applied, which is the job's; None where its parts do not agree, or it is not."""
    found = loras[-1].get("application") if loras else None
    return found if found in ("merged", "live") else None


def _names(weights: object) -> str | None:
    if isinstance(weights, Mapping):
        return ", ".join(f"{part}: {name}" for part, name in weights.items())
    return weights if isinstance(weights, str) else None
