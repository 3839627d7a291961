"""Which model's weights a file or folder holds, as far as its tensors and its configuration tell. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import AITKError, FileError, InputError
from ..weights.choice import DEFAULT, WEIGHTS, Choice, folders
from ..weights.choose import local_sources
from ..weights.untrusted_names import resolve_name
from ..words import shown
from . import catalogue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ..weights.choice import Roots
    from .facts import ModelFacts


def model_of(weights: str, roots: Roots) -> ModelFacts:
    """The one model whose weights these are.

    Args:
        weights: as on Load AITK Model.
        roots: finds ComfyUI's folders.

    Raises:
        FileError: there is no such file, it is damaged or of none of the models, or several have files like it.
        InputError: no file is named.
    """
    if weights == DEFAULT:
        raise InputError(
            "model is auto, which is told from the file or folder that weights names, and weights is default. Choose "
            f"your weights, or set model to one of: {', '.join(catalogue())}."
        )
    found = models_of(weights, roots)
    if len(found) == 1:
        return found[0]
    titles, ids = (_or([getattr(one, name) for one in found]) for name in ("title", "id"))
    raise FileError(f"{shown(weights)} may hold {titles}: their files look alike. Set model to {ids}.")


def models_of(weights: str, roots: Roots) -> list[ModelFacts]:
    """All models that a file or folder may be of, never none; reads headers and configurations alone.

    Raises:
        FileError: there is no such file, or it is damaged or of none of the models.
    """
    resolve_name(weights, folders(WEIGHTS, roots), "weights")
    configs: list[tuple[ModelFacts, Mapping[str, Any]]] = []
    errors: dict[str, None] = {}
    for facts in catalogue().values():
        try:
            main = local_sources(facts.files, Choice(weights), roots).get(facts.files.main)
            if main is not None and (config := main.config()).get("_class_name") == facts.files.main_class:
                configs.append((facts, config))
        except AITKError as error:
            errors[str(error).replace(facts.title, "")] = None
        except OSError as error:
            raise FileError(f"{shown(weights)} cannot be read: {error.strerror or type(error).__name__}.") from error
    if not configs:
        if len(errors) == 1 and not any("no part of" in said for said in errors):
            # what is wrong with the file itself
            raise FileError(next(iter(errors)))
        titles = ", ".join(facts.title for facts in catalogue().values())
        raise FileError(f"{shown(weights)} holds none of the models that there are: {titles}. Choose another one.")
    fitting = [facts for facts, config in configs if all(config.get(key) == v for key, v in facts.signs.items())]
    # of a size that nobody released: any of its class
    return fitting or [facts for facts, _ in configs]


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
