"""What a model states about itself: data that needs no torch, and where the code that runs it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..checkpoint import Checkpoint
from ..sizes import SizeRule

if TYPE_CHECKING:
    from ..handle import Quantization
    from .runtime import ModelRuntime


@dataclass(frozen=True)
class Defaults:
    """What a new sampler node shows: the model page's values."""

    steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int


@dataclass(frozen=True)
class Recipe:
    """One documented way to sample a model. Models add their own fields.

    Attributes:
        name: as the user chooses it.
        size: how sizes snap.
        lora_arithmetic: of live LoRAs: ``trainer`` adds a float32 branch, ``peft`` one in the base's dtype.
        lora_application: what ``application: auto`` means on unquantised weights, DoRA apart.
        prompt_flags: whether the prompt is read as AI Toolkit reads a sample's: stripped, and cut at the first ``--``,
            where its flags begin.
        sources: field -> where its value was read.
    """

    name: str
    size: SizeRule
    lora_arithmetic: Literal["trainer", "peft"]
    lora_application: Literal["merged", "live"]
    prompt_flags: bool
    sources: Mapping[str, str]


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files name this model's layers.

    Attributes:
        prefixes: what may stand before a diffusers module name in a file, the trainer's own first, longer ones before
            their beginnings.
        signature: parts of keys that only this model's files have, all of which must occur; names a stray file.
    """

    prefixes: Sequence[str]
    signature: Sequence[str]


@dataclass(frozen=True)
class ModelFacts:
    """A catalogue entry.

    Attributes:
        id: AI Toolkit's ``arch``; part of every shared workflow.
        title: for people.
        repo_id: the model's own Hugging Face repository.
        components: subfolders of the diffusers layout that are needed.
        transformer_class: ``_class_name`` of ``transformer/config.json``; tells one model's folder from another's.
        defaults: the sampler's.
        recipes: by name; the first is the default.
        control_images: how many reference images the model takes at most.
        latent_channels: of the LATENT.
        latent_downscale: pixels per latent pixel and side.
        latent_format: ComfyUI's name of the latent space, for previews.
        quantization: what ``model default`` means, by part.
        lora: names in LoRA files.
        load_runtime: imports the code that runs the model.
        largest_side: pixels, read from the checkpoint's configuration.
    """

    id: str
    title: str
    repo_id: str
    components: Sequence[str]
    transformer_class: str
    defaults: Defaults
    recipes: Mapping[str, Recipe]
    control_images: int
    latent_channels: int
    latent_downscale: int
    latent_format: str
    quantization: Mapping[str, Quantization]
    lora: LoraNames
    load_runtime: Callable[[], ModelRuntime]
    largest_side: Callable[[Checkpoint], int]
