"""The catalogue: every family of models is a subpackage of this one that states their facts as ``MODELS``.

Adding a model is adding a subpackage. Listing them imports no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ..errors import InputError
from .facts import ModelFacts

# what new nodes show; stated here, so that another model does not change it by coming first
DEFAULT_MODEL = "lumina2"


@cache
def catalogue() -> dict[str, ModelFacts]:
    """Model id -> facts: the default first, the others in alphabetical order."""
    found = [info.name for info in pkgutil.iter_modules(__path__) if info.ispkg]
    families = [importlib.import_module(f"{__name__}.{name}").MODELS for name in sorted(found)]
    models = sorted(
        (model for family in families for model in family), key=lambda model: (model.id != DEFAULT_MODEL, model.id)
    )
    return {model.id: model for model in models}


def find_model(model_id: str) -> ModelFacts:
    """Raises InputError where the catalogue has no such id."""
    try:
        return catalogue()[model_id]
    except KeyError:
        raise InputError(f"There is no model {model_id!r}. The models are: {', '.join(catalogue())}.") from None
