"""Quantising a model as an accuracy recovery adapter was trained for, and putting the adapter on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.files.header import FileStamp
from ..pipelines.models import catalogue, find_model
from ..pipelines.options import RECOVERY_TYPES
from .lora import LORA_SUFFIXES
from .shared import CATEGORY, check_pipeline, chosen_file, file_choices, search_words, why_no_file

if TYPE_CHECKING:
    from ..pipelines.handle import PipelineHandle

_WHAT = "recovery adapter"


class AITKRecoveryAdapter:
    """A handle and an adapter to a new handle. Only the file's header is read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": ("AITK_PIPELINE", {"tooltip": "From Load AITK Model. LoRAs may come before or after."}),
                "adapter_name": (
                    file_choices("loras", LORA_SUFFIXES),
                    {
                        "tooltip": "The adapter that the training job names behind the bar in its qtype, in 'loras'. "
                        f"{_models()}"
                    },
                ),
                "qtype": (
                    list(RECOVERY_TYPES),
                    {
                        "default": RECOVERY_TYPES[0],
                        "tooltip": "How the adapter's layers are held: what stands before the bar in the job's qtype, "
                        "and mostly in the file's name. With another type than it was trained for, pictures are bad. "
                        "uint8: AI Toolkit leaves the layers as they are. float8, int8: by torchao, which must be "
                        "installed.",
                    },
                ),
            }
        }

    RETURN_TYPES = ("AITK_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("The pipeline on the quantised weights; the one that came in stays as it is.",)
    FUNCTION = "apply"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "For previews of jobs with an accuracy recovery adapter (ARA) in their qtype: the layers that the adapter "
        "names are quantised to few bits, and it runs beside them, as in AI Toolkit, below all LoRAs."
    )
    SEARCH_ALIASES = search_words(
        "ara", "accuracy recovery adapter", "recovery adapter", "lora", "quantization", "uint3", "uint4", "3 bit",
        "4 bit", "low vram",
    )  # fmt: skip

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

    def apply(self, pipeline: PipelineHandle, adapter_name: str, qtype: str) -> tuple[PipelineHandle]:
        # here, as in lora.py: ComfyUI starts sooner
        from ..pipelines.lora.recovery_adapter import with_recovery_adapter

        check_pipeline(pipeline)
        path = chosen_file(adapter_name, "loras", _WHAT)
        return (with_recovery_adapter(pipeline, path, adapter_name, qtype, find_model(pipeline.model)),)


def _models() -> str:
    """Which models AI Toolkit gives one, and where those lie that it offers."""
    own = {facts.title: facts.recovery_adapters for facts in catalogue().values()}
    takes = {title: files for title, files in own.items() if files is not None}
    offered = {file.rpartition("/")[0] for files in takes.values() for file in files}
    return f"For {', '.join(takes)}. AI Toolkit's own: {', '.join(sorted(offered))}."
