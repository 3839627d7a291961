"""What the models state, as far as the editor shows it: defaults, sizes, and what a recipe reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import lcm, sqrt
from typing import TYPE_CHECKING, Any

from ...pipelines.models import catalogue
from ...pipelines.pictures.sizes import MINIMUM_SIDE

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.models.recipe import Recipe

# width to height, of about as many pixels as the default size
_RATIOS = ((1, 1), (4, 3), (3, 2), (16, 9), (21, 9), (3, 4), (2, 3), (9, 16), (9, 21))


def models(_: Mapping[str, str]) -> dict[str, Any]:
    """Every model: ``{"minimum_side": 64, "models": {"lumina2": {"title": ..., "recipes": {...}}}}``."""
    return {"minimum_side": MINIMUM_SIDE, "models": {facts.id: _model(facts) for facts in catalogue().values()}}


def _model(facts: ModelFacts) -> dict[str, Any]:
    return {
        "title": facts.title,
        "defaults": asdict(facts.defaults),
        "usual_sizes": _usual_sizes(facts),
        "guidance": facts.guidance,
        # whether the sampler's may be used
        "system_prompt": facts.takes_system_prompt,
        "recipes": {name: _recipe(recipe) for name, recipe in facts.recipes.items()},
    }


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "size": asdict(recipe.size),
        "control_images": recipe.control_images,
        "guided_above": recipe.guided_above,
        "options": list(recipe.options),
    }


def _usual_sizes(facts: ModelFacts) -> list[list[int]]:
    """Sizes of about as many pixels as the default one that no recipe of the model snaps."""
    rules = [recipe.size for recipe in facts.recipes.values()]
    # 64: what people who train choose their sizes by
    step = lcm(64, *(rule.floor for rule in rules), *(rule.multiple for rule in rules))
    area = facts.defaults.width * facts.defaults.height
    found = [(round(sqrt(area * wide / high) / step), round(sqrt(area * high / wide) / step)) for wide, high in _RATIOS]
    return [[width * step, height * step] for width, height in found]
