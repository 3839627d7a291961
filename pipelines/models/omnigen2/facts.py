"""The facts of OmniGen2, and its recipes side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...checkpoint import Checkpoint
from ...errors import FileError
from ...parts.flux_vae import FLUX_VAE
from ...sizes import SizeRule
from ..facts import Defaults, LoraNames, ModelFacts, PartFacts, Recipe, Repository, Spelling
from .files import TEXT_ENCODER, TRANSFORMER

if TYPE_CHECKING:
    from ..runtime import ModelRuntime

# AI Toolkit's copy of the pipeline, _apply_chat_template; ComfyUI has the same sentence
SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
TEXT_LENGTH = 256  # tokens at most, counted with both templates; longer texts lose their end
VAE_DOWNSCALE = 8
MULTIPLE = 16  # pixels: 8 per latent pixel, of which 2 x 2 are a token
MOST_REFERENCES = 3
_REFERENCE_TOKENS = 64  # a side's at most: 1024 pixels


@dataclass(frozen=True)
class OmniGen2Recipe(Recipe):
    """What OmniGen2's recipes differ in.

    Attributes:
        template_empty_negative_twice: whether an empty negative prompt gets the chat template twice, as all other texts
            do in both recipes, or once.
        squash_references: whether reference images are first brought to the picture's size, whatever their shape.
        image_guidance_scale: how far the reference images are followed; 1 takes no model call of its own.
    """

    template_empty_negative_twice: bool
    squash_references: bool
    image_guidance_scale: float


REFERENCE = OmniGen2Recipe(
    name="reference pipeline",
    size=SizeRule(floor=16, small="error", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_dtype="run",
    prompt_flags=False,
    noise="cpu",
    posterior="own",
    control_images=MOST_REFERENCES,
    options={"image_guidance_scale": "image_guidance_scale"},
    system_prompt=SYSTEM_PROMPT,
    template_empty_negative_twice=False,
    squash_references=False,
    image_guidance_scale=1.0,
    sources={
        "size": "ai-toolkit-inference src/pipelines/base.py: floored to resolution_divisor, 16",
        "lora_arithmetic": "no reference: ai-toolkit-inference has no live LoRA for this model; AI Toolkit's is taken",
        "lora_application": "ai-toolkit-inference src/pipelines/omnigen2.py _load_lora: merged, in the file's dtype",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "noise": "ai-toolkit-inference src/pipelines/base.py: a generator on the CPU",
        "posterior": "AI Toolkit's pipeline_omnigen2.py encode_vae samples; ai-toolkit-inference leaves that unseeded",
        "control_images": "ai-toolkit-inference: its server takes 3",
        "options": "pipeline_omnigen2.py image_guidance_scale",
        "template_empty_negative_twice": "ai-toolkit-inference src/pipelines/omnigen2.py: `if neg:`",
        "squash_references": "ai-toolkit-inference hands the images on as they are",
        "image_guidance_scale": "ai-toolkit-inference src/pipelines/omnigen2.py: 1.0",
    },
)

TRAINER = OmniGen2Recipe(
    name="trainer preview",
    size=SizeRule(floor=8, small="raise to 64", multiple=8),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_dtype="run",
    prompt_flags=True,
    noise="cpu",
    posterior="trainer",
    control_images=1,
    options={},
    system_prompt=SYSTEM_PROMPT,
    template_empty_negative_twice=True,
    squash_references=True,
    image_guidance_scale=1.0,
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig: floor to 8, at least 64; the pipeline resizes to it",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "noise": "AI Toolkit base_model.py generate_images: torch.manual_seed's generator",
        "posterior": "pipeline_omnigen2.py encode_vae: latent_dist.sample() without a generator",
        "control_images": "AI Toolkit omnigen2/__init__.py generate_single_image: ctrl_img alone",
        "template_empty_negative_twice": "AI Toolkit omnigen2/__init__.py get_prompt_embeds, then encode_prompt",
        "squash_references": "AI Toolkit omnigen2/__init__.py generate_single_image: resize, bilinear",
        "image_guidance_scale": "AI Toolkit omnigen2/__init__.py generate_single_image: 1.0",
    },
)


def _largest_side(checkpoint: Checkpoint) -> int:
    config = checkpoint.config("transformer")
    # the tables have one row per token; the first axis counts text tokens and the sides of the reference images
    lengths, patch = config.get("axes_lens", (300, 512, 512)), config.get("patch_size", 2)
    numbers = [*lengths, patch] if isinstance(lengths, (list, tuple)) else [None]
    if len(numbers) != 4 or not all(isinstance(number, int) and number > 0 for number in numbers):
        where = checkpoint.source("transformer").config_name
        raise FileError(f"{checkpoint.name!r}: {where} has axes_lens {lengths} and patch_size {patch}.")
    needed = TEXT_LENGTH + MOST_REFERENCES * _REFERENCE_TOKENS
    if lengths[0] <= needed:
        raise FileError(
            f"{checkpoint.name!r} has {lengths[0]} positions on its first axis; texts of {TEXT_LENGTH} tokens with "
            f"{MOST_REFERENCES} reference images take {needed + 1}."
        )
    return min(lengths[1:]) * patch * VAE_DOWNSCALE


def _load_runtime() -> ModelRuntime:
    from .runtime import OmniGen2Runtime

    return OmniGen2Runtime()


MODEL = ModelFacts(
    id="omnigen2",
    title="OmniGen2",
    repo_id="OmniGen2/OmniGen2",
    parts={
        "transformer": PartFacts(TRANSFORMER),
        "text_encoder": PartFacts(
            TEXT_ENCODER,
            folder="mllm",
            companions=("processor",),
            # ComfyUI's file has none inside
            tokenizer=Repository("OmniGen2/OmniGen2", ("processor/tokenizer*.json",), "processor"),
        ),
        "vae": PartFacts(FLUX_VAE),
    },
    transformer_class="OmniGen2Transformer2DModel",
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER)},
    guidance="classifier-free",
    latent_channels=16,
    latent_downscale=VAE_DOWNSCALE,
    latent_format="Flux",
    quantization={"transformer": "none", "text_encoder": "none"},
    lora=LoraNames(
        spellings=(
            # AI Toolkit and ComfyUI
            Spelling("diffusion_model."),
            Spelling("transformer."),
            Spelling("model.diffusion_model."),
            # PEFT; nothing in front
            Spelling("base_model.model.diffusion_model."),
            Spelling("base_model.model.transformer."),
            Spelling("base_model.model."),
            Spelling(""),
            # AI Toolkit with old_lokr_format; kohya's way
            Spelling("lycoris_", separator="_"),
            Spelling("lora_unet_", separator="_"),
        ),
        # Lumina Image 2.0 has the same blocks, under `transformer.`
        signature=("diffusion_model.layers.", "feed_forward.linear_1"),
    ),
    load_runtime=_load_runtime,
    largest_side=_largest_side,
)
