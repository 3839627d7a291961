"""What only some recipes read. The options are the models' own: each declares those of its recipes."""

from __future__ import annotations

from typing import Any

from ..pipelines.models import recipe_options
from ..pipelines.options import Chosen
from .shared import CATEGORY, changed, search_words, widgets


class AITKRecipeOptions:
    """Values to a value for the sampler; which recipe reads what stands in the tooltips."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = recipe_options()
        return {"required": widgets(options, required=True), "optional": widgets(options, required=False)}

    RETURN_TYPES = ("AITK_RECIPE_OPTIONS",)
    RETURN_NAMES = ("recipe_options",)
    OUTPUT_TOOLTIPS = ("For AITK Sampler. An option that was changed and that the recipe does not read is an error.",)
    FUNCTION = "make"
    CATEGORY = CATEGORY
    DESCRIPTION = "Settings that only some recipes have. Every one stands at the value that changes nothing."
    SEARCH_ALIASES = search_words("recipe", *(option.name.replace("_", " ") for option in recipe_options()))

    def make(self, **values: Any) -> tuple[Chosen]:
        return (Chosen.of(changed(recipe_options(), values)),)
