"""The catalogue: every family of models is a subpackage of this one.

A family's package states its facts as ``MODELS``; its module ``model`` has the code, as a function ``model_of(facts)``.
Adding a family is adding a subpackage. Listing them imports no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from ..errors import InputError
from ..words import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .facts import ModelFacts
    from .model import Model
    from .option import Option

# what new nodes show; stated here, so that another model does not change it by coming first
DEFAULT_MODEL = "lumina2"


@cache
def _families() -> dict[str, Sequence[ModelFacts]]:
    """Package -> facts of its models."""
    found = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").MODELS for name in found}


@cache
def catalogue() -> dict[str, ModelFacts]:
    """Model id -> facts: the default first, the others in alphabetical order."""
    models = sorted(
        (model for family in _families().values() for model in family),
        key=lambda model: (model.id != DEFAULT_MODEL, model.id),
    )
    return {model.id: model for model in models}


def find_model(model_id: str) -> ModelFacts:
    """Raises InputError where the catalogue has no such id."""
    try:
        return catalogue()[model_id]
    except KeyError:
        raise InputError(f"There is no model {shown(model_id)}. The models are: {', '.join(catalogue())}.") from None


def load_model(facts: ModelFacts) -> Model:
    """The model's code, of the family that states these files; imports torch."""
    family = next(name for name, models in _families().items() if any(model.files is facts.files for model in models))
    return importlib.import_module(f"{__name__}.{family}.model").model_of(facts)


def recipe_options() -> list[Option]:
    """The options of AITK Recipe Options, in the order of their places."""
    return _declared([option for model in catalogue().values() for option in model.recipe_options])


def runtime_options() -> list[Option]:
    """The options of models on AITK Runtime Options, in the order of their places."""
    return _declared([option for model in catalogue().values() for option in model.runtime_options])


def _declared(options: Sequence[Option]) -> list[Option]:
    found = {option.name: option for option in options}
    assert all(found[option.name] == option for option in options), "one name, one option"
    assert len({option.place for option in found.values()}) == len(found), "one place, one option"
    return sorted(found.values(), key=lambda option: option.place)
