"""The adapters that a job's model section puts under the LoRA: one to train with, one that recovers accuracy.

Sources: AI Toolkit config_modules.py ModelConfig, toolkit/util/quantize.py, z_image.py
load_training_adapter (27a03a91).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..options import RECOVERY_TYPES
from ..words import shown
from .architecture import entries_of
from .quantisation import TYPES

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from .job import JobModel


def takes_training_adapter(model: JobModel) -> bool:
    """Whether a training adapter was merged under the model: of other models AI Toolkit reads none."""
    return "assistant_lora_path" in model.extras and any(facts.training_adapter for facts in entries_of(model.arch))


def recovery_adapter(model: JobModel, facts: ModelFacts | None) -> str:
    """The recovery adapter that AI Toolkit quantises a model under; empty where it reads none."""
    read = facts is not None and facts.recovery_adapters is not None and bool(model.section.get("quantize"))
    return model.extras.get("accuracy_recovery_adapter", "") if read else ""


def adapter_problems(model: JobModel, recovery: str) -> Iterator[str]:
    """At what AI Toolkit stops, so that a job's pictures were rendered otherwise; a sentence each.

    Args:
        model: the job's.
        recovery: of :func:`recovery_adapter`.
    """
    held = model.quantization.get("denoiser", "none")
    if recovery and held in TYPES and held not in RECOVERY_TYPES:
        yield (
            f"The job's recovery adapter {shown(recovery, 200)} is on layers in {shown(held)}, a type at which AI "
            f"Toolkit stops; it takes {', '.join(RECOVERY_TYPES)}."
        )
    if "accuracy_recovery_adapter" in model.extras and "assistant_lora_path" in model.extras:
        yield (
            "The job sets both a recovery adapter (model.qtype) and model.assistant_lora_path, at which AI Toolkit "
            "stops. Take the one out that its pictures were rendered without."
        )
    if "|" in recovery:
        yield f"The job's model.qtype has two '|', at which AI Toolkit stops: {shown(recovery, 200)}."
