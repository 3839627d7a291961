"""A job's model_kwargs: those that are options of the model's recipes, and those that this pack lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models.recipe import TRAINER_PREVIEW
from ..options import Chosen
from ..words import shown
from .architecture import facts_of
from .config_text import object_or_empty

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..options import OptionValue
    from .job import JobModel


def options_of(model: JobModel) -> Chosen:
    """What the job's model_kwargs say of the options that the model's recipes read."""
    facts = facts_of(model)
    if facts is None:
        return Chosen()
    kwargs, read = _kwargs(model), facts.recipes[TRAINER_PREVIEW].options
    found: dict[str, OptionValue] = {}
    for key, default in facts.job_files.kwargs.items():
        value = kwargs.get(key, default)
        if key not in read or value is None:
            continue
        if isinstance(default, bool):
            found[key] = bool(value)
        elif isinstance(value, int | float):
            found[key] = float(value)
    return Chosen.of(found)


def unknown_kwargs(model: JobModel, facts: ModelFacts) -> list[str]:
    """Sentences about model_kwargs that change the picture and that this pack does not have."""
    kwargs, known = _kwargs(model), options_of(model)
    return [
        f"The job sets model_kwargs.{key} to {shown(kwargs[key], 200)}, which this pack lacks for {facts.title}."
        for key, default in facts.job_files.kwargs.items()
        if kwargs.get(key) is not None and kwargs[key] != default and key not in known
    ]


def _kwargs(model: JobModel) -> Mapping[str, Any]:
    return object_or_empty(model.section.get("model_kwargs"))
