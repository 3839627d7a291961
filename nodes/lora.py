"""Adding a LoRA to a pipeline handle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..pipelines.errors import InputError
from ..pipelines.files.header import FileStamp
from ..pipelines.models import find_model
from ..pipelines.options import APPLICATIONS, Application
from ..pipelines.words import shown
from .shared import CATEGORY, check_number, check_pipeline, chosen_file, file_choices, search_words, why_no_file

if TYPE_CHECKING:
    from ..pipelines.handle import PipelineHandle

LORA_SUFFIXES = (".safetensors", ".sft")


class ApplyAITKLoRA:
    """A handle and a file to a new handle. Only the file's header is read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": ("AITK_PIPELINE", {"tooltip": "From Load AITK Model or another Apply AITK LoRA."}),
                "lora_name": (
                    file_choices("loras", LORA_SUFFIXES),
                    {"tooltip": "A file in ComfyUI's 'loras' folder: AI Toolkit's, kohya's, ComfyUI's or LyCORIS'."},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -100.0,
                        "max": 100.0,
                        "step": 0.05,
                        "tooltip": "AI Toolkit's network_multiplier: 1 is the LoRA as trained, 0 none, below 0 its "
                        "opposite. Changing it loads no model again.",
                    },
                ),
                "application": (
                    list(APPLICATIONS),
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "merged: into the weights, with the roundings of the recipe's reference. live: "
                        "beside the weights, also on quantised ones. auto: the recipe's own way. In bfloat16 the two "
                        "are different pictures.",
                    },
                ),
            }
        }

    RETURN_TYPES = ("AITK_PIPELINE", "STRING", "STRING")
    RETURN_NAMES = ("pipeline", "trigger_word", "info")
    OUTPUT_TOOLTIPS = (
        "The pipeline with this LoRA after those it had; the one that came in stays as it is.",
        "The trigger word in the file's metadata, empty where there is none.",
        "Format, ranks and what the metadata tells of the training.",
    )
    FUNCTION = "apply"
    CATEGORY = CATEGORY
    DESCRIPTION = "Adds a LoRA of AI Toolkit, kohya's sd-scripts or LyCORIS. Chain several: they apply in order."
    SEARCH_ALIASES = search_words(
        "lora",
        "lora loader",
        "load lora",
        "ai toolkit lora",
        "trigger word",
        "kohya",
        "lycoris",
        "lokr",
        "loha",
        "dora",
    )

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None = None) -> bool | str:
        """Refuses a file that is not there or not allowed when the prompt is queued; a linked name waits."""
        return lora_name is None or why_no_file(lora_name, "loras", "LoRA") or True

    @classmethod
    def IS_CHANGED(cls, lora_name: str | None = None, **_: Any) -> str:
        """A file that was saved again is another LoRA."""
        if lora_name is None:
            # linked, and not known yet
            return ""
        return str(hash(lora_stamps(lora_name)))

    def apply(
        self, pipeline: PipelineHandle, lora_name: str, strength: float, application: str = "auto"
    ) -> tuple[PipelineHandle, str, str]:
        check_pipeline(pipeline)
        check_number("strength", strength)
        return with_lora(pipeline, lora_name, strength, check_application(application))


def check_application(value: object) -> Application:
    """Raises InputError where it is no way to apply a LoRA."""
    if value not in APPLICATIONS:
        raise InputError(f"application {shown(value)} is unknown. Choose one of: {', '.join(APPLICATIONS)}.")
    return cast("Application", value)


def with_lora(
    pipeline: PipelineHandle, lora_name: str, strength: float, application: Application
) -> tuple[PipelineHandle, str, str]:
    """The pipeline with one more LoRA, the file's trigger word, and what it tells of itself."""
    # here: formats and kinds are a fifth of what ComfyUI's start would wait for
    from ..pipelines.lora.file import open_lora
    from ..pipelines.lora.info import summary, trigger_word

    file = open_lora(lora_path(lora_name), lora_name, find_model(pipeline.model), pipeline.checkpoint)
    return pipeline.with_lora(file.spec(float(strength), application)), trigger_word(file), summary(file)


def lora_stamps(lora_name: str) -> tuple[object, ...]:
    """What tells a file that was saved again."""
    from ..pipelines.lora.peft_config import companion_of

    path = lora_path(lora_name)
    return FileStamp.of(path), companion_of(path)


def lora_path(lora_name: str) -> Path:
    """The file of a name; raises FileError."""
    return chosen_file(lora_name, "loras", "LoRA")
