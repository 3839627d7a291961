"""Putting the trainer's own adapter under a distilled model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.files.header import FileStamp
from ..pipelines.models import catalogue, find_model
from .lora import LORA_SUFFIXES
from .shared import CATEGORY, check_pipeline, chosen_file, file_choices, search_words, why_no_file

if TYPE_CHECKING:
    from ..pipelines.handle import PipelineHandle

_WHAT = "training adapter"


class AITKTrainingAdapter:
    """A handle and an adapter to a new handle. Only the file's header is read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": ("AITK_PIPELINE", {"tooltip": "From Load AITK Model. LoRAs may come before or after."}),
                "adapter_name": (
                    file_choices("loras", LORA_SUFFIXES),
                    {"tooltip": f"The adapter of the training job (assistant_lora_path), in 'loras'. {_files()}"},
                ),
            }
        }

    RETURN_TYPES = ("AITK_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("The pipeline on the adapted weights; the one that came in stays as it is.",)
    FUNCTION = "apply"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "For previews of jobs that trained a distilled model with AI Toolkit's training adapter: it is merged into "
        "the weights and taken off live, as in the trainer. It changes no more than the last bits of bfloat16: leave "
        "it out where you do not compare with a preview."
    )
    SEARCH_ALIASES = search_words("training adapter", "assistant lora", "lora", "de-distill", "turbo")

    @classmethod
    def VALIDATE_INPUTS(cls, adapter_name: str | None = None) -> bool | str:
        """Refuses a file that is not there or not allowed when the prompt is queued; a linked name waits."""
        return adapter_name is None or why_no_file(adapter_name, "loras", _WHAT) or True

    @classmethod
    def IS_CHANGED(cls, adapter_name: str | None = None, **_: Any) -> str:
        """A file that was saved again is another adapter."""
        if adapter_name is None:
            # linked, and not known yet
            return ""
        return str(hash(FileStamp.of(chosen_file(adapter_name, "loras", _WHAT))))

    def apply(self, pipeline: PipelineHandle, adapter_name: str) -> tuple[PipelineHandle]:
        # here, as in lora.py: ComfyUI starts sooner
        from ..pipelines.lora.training_adapter import with_training_adapter

        check_pipeline(pipeline)
        path = chosen_file(adapter_name, "loras", _WHAT)
        return (with_training_adapter(pipeline, path, adapter_name, find_model(pipeline.model)),)


def _files() -> str:
    """Which file is for which model."""
    found: dict[str, list[str]] = {}
    for facts in catalogue().values():
        if facts.training_adapter:
            found.setdefault(facts.training_adapter, []).append(facts.title)
    return " ".join(f"{', '.join(titles)}: {file}." for file, titles in found.items())
