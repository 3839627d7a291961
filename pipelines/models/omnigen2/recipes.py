"""The recipes of OmniGen2 side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...pictures.sizes import SizeRule
from ..option import Option
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Recipe

# AI Toolkit's copy of the pipeline, _apply_chat_template; ComfyUI has the same sentence
SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
TEXT_LENGTH = 256  # tokens at most, counted with both templates; longer texts lose their end
MULTIPLE = 16  # pixels: 8 per latent pixel, of which 2 x 2 are a token
MOST_REFERENCES = 3
REFERENCE_TOKENS = 64  # a side's at most: 1024 pixels

OPTIONS = (
    Option(
        "image_guidance_scale",
        1.0,
        "OmniGen2's reference pipeline: how far the control images are followed. 1 is AI Toolkit's; above it each step "
        "calls the model three times, and the picture is not the preview's.",
        place=4,
        low=1.0,
        step=0.1,
    ),
)


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
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=16, small="error", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="file",
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
        "lora_application": "ai-toolkit-inference src/pipelines/omnigen2.py _load_lora: merged",
        "merge_arithmetic": "ai-toolkit-inference src/pipelines/omnigen2.py _load_lora: B @ A in the file's dtype; it "
        "reads no alpha, which counts here",
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
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=8, small="raise to 64", multiple=8),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
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
