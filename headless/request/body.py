"""A request body of ai-toolkit-inference, checked as its server checks it. Imports no torch.

The server's rules were read in src/schemas/request.py, src/api/v1/inference.py, src/tasks/executor.py and
src/pipelines/base.py. It drops fields that it does not know; here they are an error, since a misspelt ``sample_steps``
would be another picture. It also takes numbers in quotes; here they are an error, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import InputError
from ...pipelines.models import catalogue, recipe_options
from ...pipelines.models.recipe import REFERENCE_PIPELINE
from ...pipelines.words import shown
from .rendering import SEEDS, LoraUse, PictureRequest, Rendering

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.options import OptionValue

_BODY = ("model", "trigger_word", "prompts", "loras")
# fields that the server knows and that change no picture of this pack's models -> why
_IDLE_BODY = {
    "hf_token": "it is not read from a file: log in with 'hf auth login', or set HF_TOKEN",
    "kv_cache": "it is of Krea 2 with control images",
    "match_target_res": "it is of Krea 2 with control images",
}
# of these, those that models read as options of their recipes
_MODEL_OPTIONS = ("kv_cache", "match_target_res")
_CONTROL = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
_PROMPT = (
    "prompt", "trigger_word", "width", "height", "guidance_scale", "sample_steps", "neg", "seed", "resolution",
    *_CONTROL,
)  # fmt: skip
_IDLE_PROMPT = {
    "sampler": "the server does not use it",
    "num_frames": "it is for videos",
    "fps": "it is for videos",
}
_LORA = ("path", "network_multiplier", "transformer")
_TRIGGER = "[trigger]"  # the server replaces this one alone, AI Toolkit `[name]` too
_RANDOM = -1


def read_body(body: Mapping[str, Any], draw: Callable[[], int]) -> Rendering:
    """What the server would render of a body.

    Args:
        body: the JSON object that is sent to ``POST /v1/inference``.
        draw: gives a seed where a prompt asks for a random one.

    Raises:
        InputError: the server would refuse the body, the pack has not its model, or a field is unknown.
    """
    prompts, loras = _objects(body, "prompts"), _objects(body, "loras")
    _refuse_unknown(body, prompts, loras)
    facts = _model(body.get("model"))
    trigger_word = _text(body, "trigger_word", "trigger_word")
    pictures = [_picture(facts, prompt, index, trigger_word, draw) for index, prompt in enumerate(prompts)]
    lora = _lora(facts, loras)
    options = _recipe_options(facts, body)
    used = {name: value for name, value in body.items() if name not in options}
    notes = (*_idle(used, prompts), *_idle_control(facts, prompts), *_drawn(prompts, pictures))
    return Rendering(facts.id, REFERENCE_PIPELINE, (lora,), tuple(pictures), recipe_options=options, notes=notes)


def _recipe_options(facts: ModelFacts, body: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Inputs of AITK Recipe Options for what the body says of the model's options; none where it says nothing."""
    found: dict[str, OptionValue] = {}
    for name in _MODEL_OPTIONS:
        value = body.get(name)
        if value is None or name not in facts.recipes[REFERENCE_PIPELINE].options:
            continue
        if not isinstance(value, bool):
            raise InputError(f"{name} is {shown(value)}. Write true or false.")
        found[name] = value
    required = {option.name: option.default for option in recipe_options() if option.required}
    return required | found if found else {}


def server_models() -> dict[str, ModelFacts]:
    """The server's id of a model -> its facts: AI Toolkit's name, with ``_`` for ``:``."""
    return {facts.id.replace(":", "_"): facts for facts in catalogue().values()}


def _model(name: object) -> ModelFacts:
    models = server_models()
    if name is None:
        raise InputError(f"model is missing from the request. Choose one of: {', '.join(models)}.")
    if not isinstance(name, str) or name not in models:
        raise InputError(f"model is {shown(name)}, which this pack does not have. It has: {', '.join(models)}.")
    return models[name]


def _objects(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = body.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        given = "missing from the request" if found is None else "no list of objects, or an empty one"
        example = '[{"prompt": "a red fox"}]' if name == "prompts" else '[{"path": "my_lora.safetensors"}]'
        raise InputError(f"{name} is {given}. Write it like {example}.")
    return found


def _refuse_unknown(
    body: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], loras: Sequence[Mapping[str, Any]]
) -> None:
    """Raises InputError that names every field that the server does not know, and the likeliest that was meant."""
    places = [("", body, (*_BODY, *_IDLE_BODY))]
    places += [(f"prompts[{index}].", prompt, (*_PROMPT, *_IDLE_PROMPT)) for index, prompt in enumerate(prompts)]
    places += [(f"loras[{index}].", lora, _LORA) for index, lora in enumerate(loras)]
    found = []
    for where, fields, known in places:
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                found.append(f"{where}{shown(name)[1:-1]}" + (f" (is it {near[0]}?)" if near else ""))
    if found:
        more = f", and {len(found) - 10} more" if len(found) > 10 else ""
        raise InputError(
            f"The request has unknown fields: {', '.join(found[:10])}{more}. Correct or remove them: the server would "
            "leave them out and render something else."
        )


def _picture(
    facts: ModelFacts, prompt: Mapping[str, Any], index: int, trigger_word: str, draw: Callable[[], int]
) -> PictureRequest:
    def where(name: str) -> str:
        return f"prompts[{index}].{name}"

    def number(name: str, low: float, high: float, default: float) -> float:
        return _number(prompt.get(name), where(name), low, high, default)

    def whole(name: str, low: int, high: int, default: int) -> int:
        return _whole(prompt.get(name), where(name), low, high, default)

    if prompt.get("prompt") is None:
        raise InputError(f"{where('prompt')} is missing from the request. Write the text to render.")
    if prompt.get("resolution") not in (None, "Default"):
        raise InputError(
            f"{where('resolution')} is {shown(prompt['resolution'])}: {facts.title} has Default alone. Remove it, and "
            "set width and height."
        )
    text = _text(prompt, "prompt", where("prompt"))
    word = _text(prompt, "trigger_word", where("trigger_word")) or trigger_word
    defaults = facts.defaults
    seed = whole("seed", _RANDOM, SEEDS - 1, defaults.seed + index)
    return PictureRequest(
        prompt=text.replace(_TRIGGER, word) if word else text,
        negative_prompt=_text(prompt, "neg", where("neg")),
        width=whole("width", 64, 4096, defaults.width),
        height=whole("height", 64, 4096, defaults.height),
        steps=whole("sample_steps", 1, 150, defaults.steps),
        guidance_scale=number("guidance_scale", 0, 20, defaults.guidance_scale),
        seed=draw() if seed == _RANDOM else seed,
        control_images=_control_images(prompt, where) if _takes_control_images(facts) else {},
    )


def _lora(facts: ModelFacts, loras: Sequence[Mapping[str, Any]]) -> LoraUse:
    if len(loras) != 1:
        raise InputError(f"loras holds {len(loras)} LoRAs, and the server takes exactly one. Remove the others.")
    (lora,) = loras
    if lora.get("transformer") is not None:
        raise InputError(f"loras[0].transformer is for models with two transformers, and {facts.title} has one.")
    path = _text(lora, "path", "loras[0].path")
    if not path:
        raise InputError("loras[0].path is missing from the request. Write the LoRA's file name.")
    return LoraUse(path, _number(lora.get("network_multiplier"), "loras[0].network_multiplier", -2, 2, 1.0))


def _takes_control_images(facts: ModelFacts) -> bool:
    return facts.recipes[REFERENCE_PIPELINE].control_images > 0


def _control_images(prompt: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, str]:
    """Field -> value; the server takes ``ctrl_img`` only where none of the numbered ones is given."""
    given = {where(name): _text(prompt, name, where(name)) for name in _CONTROL}
    numbered = {name: value for name, value in given.items() if value and name != where(_CONTROL[0])}
    return numbered or {name: value for name, value in given.items() if value}


def _idle(body: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    places = [("", body, _IDLE_BODY)]
    places += [(f"prompts[{index}].", prompt, _IDLE_PROMPT) for index, prompt in enumerate(prompts)]
    for where, fields, idle in places:
        yield from (f"{where}{name} is not used: {why}" for name, why in idle.items() if fields.get(name) is not None)


def _idle_control(facts: ModelFacts, prompts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for index, prompt in enumerate(prompts):
        given = [name for name in _CONTROL if prompt.get(name)]
        if given and not _takes_control_images(facts):
            yield f"prompts[{index}].{', '.join(given)} is not used: the server gives {facts.title} no control images"
        elif len(given) > 1 and given[0] == _CONTROL[0]:
            yield f"prompts[{index}].{given[0]} is not used: the server takes {', '.join(given[1:])} instead"


def _drawn(prompts: Sequence[Mapping[str, Any]], pictures: Sequence[PictureRequest]) -> Iterator[str]:
    for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        if prompt.get("seed") == _RANDOM:
            yield f"prompts[{index}].seed is -1: {picture.seed} was drawn"


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where} is {shown(value)}: it must be a text.")
    return value or ""


def _number(value: object, where: str, low: float, high: float, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where} is {shown(value)}: the server takes {low} to {high}.")
    return value


def _whole(value: object, where: str, low: int, high: int, default: int) -> int:
    # checked first: no float holds every whole number, and NaN is none
    number = _number(value, where, low, high, default)
    if number != int(number):
        raise InputError(f"{where} is {shown(value)}: the server takes whole numbers, {low} to {high}.")
    return int(number)
