"""From the texts that a user typed to those that the model gets, and what the user should know about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..models.model import Typed
from ..words import shown

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..models.recipe import Recipe
    from ..parts.encoder import Embedding
    from .request import SampleRequest


_TRIGGERS = ("[trigger]", "[name]")  # AI Toolkit's


def typed_texts(request: SampleRequest, recipe: Recipe) -> tuple[Typed, str]:
    """The texts with the trigger word in them, and the flags that were cut off the prompt."""
    prompt, flags = insert_trigger(request.prompt, request.trigger_word), ""
    if recipe.prompt_flags:
        prompt, flags = cut_flags(prompt)
    return Typed(prompt, request.negative_prompt, request.system_prompt), flags


def insert_trigger(prompt: str, trigger_word: str) -> str:
    """Replaces ``[trigger]`` and ``[name]`` as AI Toolkit does (toolkit/prompt_utils.py); without a word, nothing."""
    if not trigger_word:
        return prompt
    for word in reversed(_TRIGGERS):
        prompt = prompt.replace(word, trigger_word)
    return prompt


def cut_flags(prompt: str) -> tuple[str, str]:
    """What AI Toolkit takes for the prompt, and the flags behind it, which set a job's size, seed, ... per sample."""
    text, dashes, flags = prompt.partition("--")
    return text.strip(), (dashes + flags).strip()


def text_notes(model: ModelFacts, typed: Typed, flags: str, conditioning: Sequence[Embedding]) -> Iterator[str]:
    """What the user should see on the node."""
    if not typed.prompt.strip():
        yield "the prompt is empty"
    for name, text in (("prompt", typed.prompt), ("negative prompt", typed.negative_prompt)):
        left = [word for word in _TRIGGERS if word in text]
        if left:
            why = "trigger_word is empty" if name == "prompt" else "trigger_word goes into the prompt alone"
            stays = "stays in the {} as it is" if len(left) == 1 else "stay in the {} as they are"
            yield f"{' and '.join(left)} {stays.format(name)}: {why}"
    if flags:
        said = shown(flags)
        # the reason first: a node shows two lines
        yield f"AI Toolkit reads flags from '--' on: {said} was cut off the prompt. Set the node's inputs instead"
    for name, embedding in zip(("prompt", "negative prompt"), conditioning, strict=False):
        if embedding.cut_tokens:
            length = embedding.mask.shape[1]
            yield f"the {name} was cut at {length} tokens: its last {embedding.cut_tokens} were left out"
    if typed.negative_prompt and len(conditioning) < 2:
        why = f"{model.title} has its guidance built in"
        if model.guidance == "classifier-free":
            why = "guidance_scale is 1 or less"
        yield f"the negative prompt is not used: {why}"


def storing_notes(trouble: str) -> Iterator[str]:
    """What the user should know of embeddings that could not be kept on the disk; ``trouble`` is why, or empty."""
    if trouble:
        yield f"the prompt's embedding was not kept on the disk: {trouble}. The picture is the same"
