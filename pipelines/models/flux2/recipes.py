"""The recipes of FLUX.2-dev and FLUX.2-klein side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...pictures.sizes import SizeRule
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Recipe

# AI Toolkit flux2/src/pipeline.py; the line break is part of it
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
TEXT_LENGTH = 512  # tokens, template counted


@dataclass(frozen=True)
class Flux2Recipe(Recipe):
    """What FLUX.2's recipes differ in; schedule, loop and guidance are AI Toolkit's in both.

    Attributes:
        cast_rope: whether the text encoder's rotary frequencies are rounded to the run's dtype: ``unquantised`` is only
            where its weights are not quantised.
    """

    cast_rope: str


REFERENCE = Flux2Recipe(
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="addmm",
    prompt_flags=False,
    noise="cpu",
    system_prompt=SYSTEM_MESSAGE,
    control_images=0,
    posterior="mean",
    options={},
    cast_rope="never",
    sources={
        "size": "model page flux2: sides are floored to a multiple of 32",
        "lora_application": "model page: manual LoRA merge into the transformer",
        "merge_arithmetic": "ai-toolkit-inference src/pipelines/flux2.py _merge_adapter_to_transformer",
        "lora_arithmetic": "on quantised weights, which the page does not know, AI Toolkit's live branch",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "system_prompt": "AI Toolkit flux2/src/pipeline.py SYSTEM_MESSAGE, which the page's pipeline imports",
        "control_images": "model page: control image, no",
        "cast_rope": "ai-toolkit-inference: from_pretrained, then to(device) without a dtype",
    },
)
TRAINER = Flux2Recipe(
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=16, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
    prompt_flags=True,
    noise="cpu",
    system_prompt=SYSTEM_MESSAGE,
    control_images=3,
    posterior="mean",
    options={},
    cast_rope="always",
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig floors to 8, flux2_model.py then to 16",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier, live when quantised",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "system_prompt": "AI Toolkit flux2/src/pipeline.py SYSTEM_MESSAGE",
        "control_images": "AI Toolkit flux2_model.py generate_single_image: ctrl_img, ctrl_img_2, ctrl_img_3",
        "posterior": "AI Toolkit flux2/src/autoencoder.py encode: the mean",
        "cast_rope": "AI Toolkit flux2_model.py load_te: to(device, dtype=dtype) casts the buffers as well",
    },
)
KLEIN_REFERENCE = replace(
    REFERENCE,
    size=SizeRule(floor=16, small="error", multiple=16),
    system_prompt="",
    sources={
        **REFERENCE.sources,
        "size": "ai-toolkit-inference flux2_klein.py: resolution_divisor 16",
        "system_prompt": "AI Toolkit flux2/src/pipeline.py: Qwen3's messages have none",
    },
)
KLEIN_TRAINER = replace(
    TRAINER,
    system_prompt="",
    cast_rope="unquantised",
    sources={
        **TRAINER.sources,
        "system_prompt": "AI Toolkit flux2/src/pipeline.py: Qwen3's messages have none",
        "cast_rope": "AI Toolkit flux2_klein_model.py load_te: cast with a dtype only where it is not quantised",
    },
)
