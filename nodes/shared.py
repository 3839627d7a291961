"""What several nodes share: their category, checks of what is wired to them, and what models say in their tooltips."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import FileError, InputError
from ..pipelines.handle import PipelineHandle
from ..pipelines.models import catalogue
from ..pipelines.weights.choice import why_refused as why_name_refused
from ..pipelines.weights.untrusted_names import resolve_name
from ..pipelines.words import shown
from .host import current_host

if TYPE_CHECKING:
    import torch

    from ..pipelines.models.option import Option

CATEGORY = "AITK"
PACK_WORDS = ("ai toolkit", "aitk", "ostris")  # what people look for who do not know the nodes' names


def check_pipeline(value: object) -> None:
    """Raises InputError where something else than a pipeline is connected, which a hand-written prompt can do."""
    if not isinstance(value, PipelineHandle):
        raise InputError("pipeline is no AITK_PIPELINE. Connect Load AITK Model or Apply AITK LoRA.")


def check_texts(values: Mapping[str, object]) -> None:
    """Raises InputError where an input is no text: ComfyUI hands on what comes over a wire as it is."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{name} is {shown(value)}: it must be a text.")


def check_number(name: str, value: object, *, whole: bool = False) -> None:
    """Raises InputError where an input is no number that can be counted with."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    # no float is as large as some whole numbers
    if not fits or not abs(value) <= sys.float_info.max:  # pyright: ignore[reportArgumentType]
        raise InputError(f"{name} is {shown(value)}: choose a {'whole ' if whole else ''}number.")


def latent_samples(latent: object) -> torch.Tensor:
    """The tensor of ComfyUI's LATENT; raises InputError where something else is connected."""
    if not isinstance(latent, dict) or "samples" not in latent:
        raise InputError("latent is no LATENT. Connect a node that gives one.")
    if latent["samples"] is None:
        raise InputError("latent is empty: it has no samples. Connect another node.")
    return latent["samples"]


def recipe_names() -> list[str]:
    """All models' recipes, each once; the first is the default."""
    return list(dict.fromkeys(name for model in catalogue().values() for name in model.recipes))


def why_refused(name: str, kinds: Sequence[str], what: str) -> str:
    """The message of a name that cannot be resolved below the folders of model kinds; empty for one that can."""
    return why_name_refused(name, kinds, what, roots)


def file_choices(kind: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a model kind for a list to choose from; of an empty folder, words that say so."""
    return current_host().model_files(kind, suffixes) or [_empty(kind)]


def chosen_file(name: str, kind: str, what: str) -> Path:
    """The file of a name from :func:`file_choices`.

    Raises:
        FileError: there is none, or the name is none that a workflow may have; says what to do.
    """
    if name == _empty(kind):
        raise FileError(
            f"No {what} is chosen: ComfyUI's {kind!r} folder holds none. Put the file there (models/{kind}, or a "
            "folder of extra_model_paths.yaml), press R in the editor, and choose it. To go on without it, bypass "
            "this node (Ctrl+B)."
        )
    return resolve_name(name, roots(kind), what)


def why_no_file(name: str, kind: str, what: str) -> str:
    """The message of a name that :func:`chosen_file` refuses; empty for another."""
    try:
        chosen_file(name, kind, what)
    except FileError as error:
        return str(error)
    return ""


def _empty(kind: str) -> str:
    # an empty list shows as "undefined"
    return f"no file in {kind!r} yet"


def roots(kind: str) -> Sequence[Path]:
    """The folders of one of ComfyUI's model kinds."""
    return current_host().model_roots(kind)


def tooltip(node_input: str, text: str) -> dict[str, str]:
    """A tooltip with what the models add to it.

    Args:
        node_input: ``Node.input``, as the models name it.
        text: what holds for all models.
    """
    said = [facts.words.inputs.get(node_input, "") for facts in catalogue().values()]
    return {"tooltip": " ".join(dict.fromkeys(part for part in (text, *said) if part))}


def search_words(*own: str) -> list[str]:
    """A node's own words, the pack's, and those of all models, each once."""
    models = (word for facts in catalogue().values() for word in facts.words.search)
    return list(dict.fromkeys([*own, *PACK_WORDS, *models]))


def widget(option: Option) -> tuple[Any, dict[str, Any]]:
    """An option that models declare as one of ComfyUI's inputs."""
    about: dict[str, Any] = {"default": option.default, "tooltip": option.tooltip}
    if option.advanced:
        about["advanced"] = True
    if option.choices:
        return list(option.choices), about
    if isinstance(option.default, bool):
        return "BOOLEAN", about
    return "FLOAT", about | {"min": option.low, "max": option.high, "step": option.step, "round": 0.0001}


def widgets(options: Sequence[Option], *, required: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Those of the options that ComfyUI lists as required, or the others."""
    return {option.name: widget(option) for option in options if option.required is required}


def changed(options: Sequence[Option], values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not their options' defaults; raises InputError where one cannot be a value of its option."""
    found = {}
    for option in options:
        value = values.get(option.name, option.default)
        if isinstance(option.default, float) and not option.choices:
            check_number(option.name, value)
            value = float(value)
        option.check(value)
        if value != option.default:
            found[option.name] = value
    return found


def takes_control_images() -> str:
    """Which models take how many, with which recipe; one sentence."""
    found: dict[str, list[str]] = {}
    for facts in catalogue().values():
        counts = {name: recipe.control_images for name, recipe in facts.recipes.items() if recipe.control_images}
        every = set(counts.values())
        # one number for a model with a recipe for each time of the trainer's
        alike = len(counts) == len(facts.recipes) and len(every) == 1
        said = str(every.pop()) if alike else ", ".join(f"{name}: {count}" for name, count in counts.items())
        if said:
            found.setdefault(said, []).append(facts.title)
    models = "; ".join(f"{', '.join(titles)} ({said})" for said, titles in found.items())
    return f"Those that take some: {models}."
