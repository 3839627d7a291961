"""What a job's folder leaves open of its previews, each with both possibilities: causes where pictures differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..jobs.era import comfy_weights_of, encoder_types_of
from ..jobs.loaders import NEW_LOADERS, OLD_LOADERS
from .causes import Cause, Described, Standing

if TYPE_CHECKING:
    from ..jobs.job import JobCheckpoint, TrainingJob


def undecided(job: TrainingJob, checkpoint: JobCheckpoint, ours: Described) -> Iterator[Cause]:
    """What of a checkpoint's previews depends on a version that nothing tells, or on AI Toolkit's models folder."""
    types = encoder_types_of(job, checkpoint)
    if len(types) > 1:
        new, old = types
        words = (
            f"AI Toolkit up to {OLD_LOADERS} quantised the text encoder to {old}, from {NEW_LOADERS} on to {new}, and "
            f"nothing tells which rendered the preview. Ours is {ours.encoder_quantization}. To try the other, set "
            "model.qtype_te in the job's config."
        )
        yield Cause("text_encoder_type", Standing.POSSIBLE, f"{old} or {new}", ours.encoder_quantization or "", words)
    files = comfy_weights_of(job, checkpoint)
    if files:
        words = (
            f"Since 0.13 AI Toolkit takes this base from its models folder where {' or '.join(files)} lies there, else "
            f"from {job.model.name_or_path}; the job does not say which it was. Ours is {ours.weights}. To try the "
            "other, set weights to that file."
        )
        recorded = f"{job.model.name_or_path}, or {' or '.join(files)}"
        yield Cause("comfy_weights", Standing.POSSIBLE, recorded, ours.weights or "", words)
