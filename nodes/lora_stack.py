"""Several LoRAs on one node, each with a strength and a switch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.errors import AITKError, InputError
from ..pipelines.options import APPLICATIONS
from ..pipelines.words import shown
from .host import current_host
from .lora import LORA_SUFFIXES, check_application, lora_stamps, with_lora
from .shared import CATEGORY, check_number, check_pipeline, search_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..pipelines.handle import PipelineHandle

NONE = "none"
_SLOTS = range(1, 7)  # part of every saved workflow: more of them come at the end


class AITKLoRAStack:
    """A handle and up to six files to a new handle. Only the headers of the files in use are read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        files = [NONE, *current_host().model_files("loras", LORA_SUFFIXES)]
        slots: dict[str, Any] = {}
        for n in _SLOTS:
            slots |= {
                f"lora_{n}": (
                    files,
                    {"default": NONE, "tooltip": f"LoRA {n}, a file in ComfyUI's 'loras' folder; none: no LoRA."},
                ),
                f"strength_{n}": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -100.0,
                        "max": 100.0,
                        "step": 0.05,
                        "tooltip": f"Strength of LoRA {n}: 1 is as trained, 0 none, below 0 its opposite.",
                    },
                ),
                f"on_{n}": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "label_on": "on",
                        "label_off": "off",
                        "tooltip": f"Whether LoRA {n} is used. Off, its file is not even looked for.",
                    },
                ),
            }
        return {
            "required": {
                "pipeline": ("AITK_PIPELINE", {"tooltip": "From Load AITK Model or another node that gives one."}),
                "application": (
                    list(APPLICATIONS),
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "How all of them are applied, as on Apply AITK LoRA. auto: the recipe's own way.",
                    },
                ),
            },
            "optional": slots,
        }

    RETURN_TYPES = ("AITK_PIPELINE", "STRING", "STRING")
    RETURN_NAMES = ("pipeline", "trigger_words", "info")
    OUTPUT_TOOLTIPS = (
        "The pipeline with these LoRAs after those it had, from the first slot to the last.",
        "The trigger words in the files' metadata, each once, with commas between.",
        "What each file in use tells of itself.",
    )
    FUNCTION = "apply"
    CATEGORY = CATEGORY
    DESCRIPTION = "Adds up to six LoRAs, each with a strength and a switch. The same as a chain of Apply AITK LoRA."
    SEARCH_ALIASES = search_words(
        "lora", "lora stack", "multiple loras", "load lora", "power lora loader", "trigger word"
    )

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        lora_1: str | None = None,
        lora_2: str | None = None,
        lora_3: str | None = None,
        lora_4: str | None = None,
        lora_5: str | None = None,
        lora_6: str | None = None,
    ) -> bool:
        """Takes the names' check from ComfyUI, which would refuse a file that is not there in a slot that is off.

        A name that is not there or not allowed, in a slot that is on, is refused when the node runs, which is before
        anything loads: what this method said would be shown once for each of its parameters.
        """
        del lora_1, lora_2, lora_3, lora_4, lora_5, lora_6
        return True

    @classmethod
    def IS_CHANGED(cls, **values: Any) -> str:
        """A file that was saved again is another LoRA; a linked name is not known yet, and one that is gone is none."""
        stamps = []
        for _, name, _ in _used(values):
            try:
                stamps.append(lora_stamps(name))
            except AITKError:
                stamps.append(())
        return str(hash(tuple(stamps)))

    def apply(
        self, pipeline: PipelineHandle, application: str = "auto", **values: Any
    ) -> tuple[PipelineHandle, str, str]:
        check_pipeline(pipeline)
        way = check_application(application)
        words: dict[str, None] = {}
        told = []
        for slot, name, strength in _used(values):
            check_number(f"strength_{slot}", strength)
            try:
                pipeline, word, info = with_lora(pipeline, name, strength, way)
            except AITKError as error:
                raise type(error)(f"lora_{slot}: {error}") from error
            words |= {word: None} if word else {}
            told.append(f"{slot}: {name}\n{info}")
        return pipeline, ", ".join(words), "\n\n".join(told)


def _used(values: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Slot, name and strength of those that are on and not empty."""
    for n in _SLOTS:
        name, on = values.get(f"lora_{n}", NONE), values.get(f"on_{n}", True)
        if not isinstance(on, bool):
            raise InputError(f"on_{n} is {shown(on)}: choose true or false.")
        if on and name is not None and name != NONE:
            yield n, name, values.get(f"strength_{n}", 1.0)
