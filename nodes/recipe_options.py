"""What only some recipes read."""

from __future__ import annotations

from typing import Any

from ..pipelines.errors import InputError
from ..pipelines.models.facts import RecipeOptions
from .load_model import CATEGORY


class AITKRecipeOptions:
    """Numbers to a value for the sampler; which recipe reads what stands in the tooltips."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        plain = RecipeOptions()
        return {
            "required": {
                "cfg_trunc_ratio": (
                    "FLOAT",
                    {
                        "default": plain.cfg_trunc_ratio,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.01,
                        "round": 0.0001,
                        "tooltip": "sd-scripts on Lumina Image 2.0: the negative prompt is used while the model's time "
                        "(0 noise, 1 image) is below this. 0 is never, above 1 in every step.",
                    },
                ),
                "renorm_cfg": (
                    "FLOAT",
                    {
                        "default": plain.renorm_cfg,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.05,
                        "round": 0.0001,
                        "tooltip": "sd-scripts on Lumina Image 2.0: limits the guided prediction to this many times "
                        "the prompt's norm, over the whole picture. 0 switches it off.",
                    },
                ),
                "discrete_flow_shift": (
                    "FLOAT",
                    {
                        "default": plain.discrete_flow_shift,
                        "min": 0.01,
                        "max": 100.0,
                        "step": 0.1,
                        "round": 0.0001,
                        "tooltip": "sd-scripts on Lumina Image 2.0: shift of the schedule. More spends more steps on "
                        "the composition.",
                    },
                ),
                "system_prompt_on_negative": (
                    "BOOLEAN",
                    {
                        "default": plain.system_prompt_on_negative,
                        "tooltip": "sd-scripts on Lumina Image 2.0: puts the system prompt in front of the negative "
                        "prompt too (--add_system_prompt_to_negative_prompt).",
                    },
                ),
            },
            "optional": {
                "image_guidance_scale": (
                    "FLOAT",
                    {
                        "default": plain.image_guidance_scale,
                        "min": 1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "round": 0.0001,
                        "tooltip": "OmniGen2's reference pipeline: how far the control images are followed. 1 is AI "
                        "Toolkit's; above it each step calls the model three times, and the picture is not the "
                        "preview's.",
                    },
                ),
            },
        }

    RETURN_TYPES = ("AITK_RECIPE_OPTIONS",)
    RETURN_NAMES = ("recipe_options",)
    OUTPUT_TOOLTIPS = ("For AITK Sampler. An option that was changed and that the recipe does not read is an error.",)
    FUNCTION = "make"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Settings that only some recipes have, such as sd-scripts' guidance truncation and OmniGen2's image guidance."
    )
    SEARCH_ALIASES = [
        "cfg_trunc_ratio", "renorm cfg", "discrete_flow_shift", "kohya", "sd-scripts", "cfg truncation", "omnigen2",
        "image guidance",
    ]  # fmt: skip

    def make(
        self,
        cfg_trunc_ratio: float,
        renorm_cfg: float,
        discrete_flow_shift: float,
        system_prompt_on_negative: bool,
        image_guidance_scale: float = 1.0,
    ) -> tuple[RecipeOptions]:
        if not isinstance(system_prompt_on_negative, bool):
            raise InputError(f"system_prompt_on_negative is {system_prompt_on_negative!r}: choose true or false.")
        return (
            RecipeOptions(
                float(cfg_trunc_ratio),
                float(renorm_cfg),
                float(discrete_flow_shift),
                system_prompt_on_negative,
                float(image_guidance_scale),
            ),
        )
