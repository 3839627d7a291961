"""The facts of Lumina Image 2.0, and its recipes side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...checkpoint import Checkpoint
from ...errors import FileError
from ...sizes import SizeRule
from ..facts import Defaults, LoraNames, ModelFacts, Recipe

if TYPE_CHECKING:
    from ..runtime import ModelRuntime

# diffusers: pipelines/lumina2/pipeline_lumina2.py; AI Toolkit calls the same method
SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
    "based on textual prompts or user prompts."
)
PROMPT_MARKER = " <Prompt Start> "
TEXT_LENGTH = 256  # tokens, system prompt and <bos> counted; the model page and AI Toolkit both pass 256
VAE_DOWNSCALE = 8


@dataclass(frozen=True)
class Lumina2Recipe(Recipe):
    """What Lumina2's recipes differ in.

    Attributes:
        shift: s = shift * x / (1 + (shift - 1) * x) of x = linspace(1, 1 / steps, steps).
        template_negative: whether the negative prompt gets the system prompt and the marker too.
        softcap: whether ``text_encoder_attention: auto`` soft-caps Gemma2's attention logits.
        cast_rope: whether Gemma2's rotary frequencies are rounded to the run's dtype.
    """

    shift: float
    template_negative: bool
    softcap: bool
    cast_rope: bool


REFERENCE = Lumina2Recipe(
    name="reference pipeline",
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="peft",
    lora_application="live",
    prompt_flags=False,
    shift=6.0,
    template_negative=False,
    softcap=False,
    cast_rope=False,
    sources={
        "size": "model page lumina2: sides are floored to a multiple of 32",
        "lora_arithmetic": "model page: load_lora_weights + set_adapters, that is PEFT in the base's dtype",
        "prompt_flags": "diffusers takes the prompt as it is",
        "lora_application": "model page: dynamic via adapters",
        "shift": "model page: FlowMatchEulerDiscreteScheduler, shift 6.0",
        "template_negative": "diffusers Lumina2Pipeline.encode_prompt: only the prompt gets the system prompt",
        "softcap": "transformers 4.57 and 5.5, which ai-toolkit-inference and AI Toolkit pin, run SDPA without it",
        "cast_rope": "diffusers from_pretrained leaves the frequencies in float32",
    },
)

TRAINER = Lumina2Recipe(
    name="trainer preview",
    size=SizeRule(floor=8, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    prompt_flags=True,
    shift=1.0,
    template_negative=True,
    softcap=False,
    cast_rope=True,
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig: floor to 8, at least 64; diffusers then wants 16",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "lora_application": "AI Toolkit stable_diffusion_model.py generate_images: merged at one multiplier",
        "shift": "AI Toolkit toolkit/sampler.py configures 6.0, but from_config drops it: the scheduler runs at 1.0",
        "template_negative": "AI Toolkit stable_diffusion_model.py encode_prompt: two calls, both with the template",
        "softcap": "transformers 5.5.3, which AI Toolkit pins, runs SDPA without it",
        "cast_rope": "AI Toolkit load_model: text_encoder.to(device, dtype=dtype) casts the buffers as well",
    },
)


def _largest_side(checkpoint: Checkpoint) -> int:
    config = checkpoint.config("transformer")
    # the table has one row per patch; the first axis counts text tokens. 512 patches = 8192 pixels in the release
    lengths, patch = config.get("axes_lens", (300, 512, 512)), config.get("patch_size", 2)
    numbers = [*lengths, patch] if isinstance(lengths, (list, tuple)) else [None]
    if len(numbers) != 4 or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise FileError(f"{checkpoint.name!r}: transformer/config.json has axes_lens {lengths} and patch_size {patch}.")
    if lengths[0] <= TEXT_LENGTH:
        raise FileError(
            f"{checkpoint.name!r} holds texts of {lengths[0] - 1} tokens; this model is run with {TEXT_LENGTH}."
        )
    return min(lengths[1:]) * patch * VAE_DOWNSCALE


def _load_runtime() -> ModelRuntime:
    from .runtime import Lumina2Runtime

    return Lumina2Runtime()


MODEL = ModelFacts(
    id="lumina2",
    title="Lumina Image 2.0",
    repo_id="Alpha-VLLM/Lumina-Image-2.0",
    components=("transformer", "text_encoder", "tokenizer", "vae"),
    transformer_class="Lumina2Transformer2DModel",
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER)},
    control_images=0,
    latent_channels=16,
    latent_downscale=VAE_DOWNSCALE,
    latent_format="Flux",
    quantization={"transformer": "none", "text_encoder": "none"},
    lora=LoraNames(
        prefixes=("transformer.", "base_model.model.transformer.", "base_model.model.", ""),
        signature=("layers.", "feed_forward.linear_1"),
    ),
    load_runtime=_load_runtime,
    largest_side=_largest_side,
)
