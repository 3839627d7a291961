"""The recipes of Lumina Image 2.0 side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...pictures.sizes import SizeRule
from ..option import Option
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Recipe

# diffusers: pipelines/lumina2/pipeline_lumina2.py; AI Toolkit calls the same method
SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
    "based on textual prompts or user prompts."
)
PROMPT_MARKER = " <Prompt Start> "
TEXT_LENGTH = 256  # tokens, system prompt and <bos> counted; the model page and AI Toolkit both pass 256
EVERY_STEP = 2.0  # a model time that is never reached


OPTIONS = (
    Option(
        "cfg_trunc_ratio",
        0.25,
        "sd-scripts on Lumina Image 2.0: the negative prompt is used while the model's time (0 noise, 1 image) is "
        "below this. 0 is never, above 1 in every step.",
        place=0,
        required=True,
    ),
    Option(
        "renorm_cfg",
        1.0,
        "sd-scripts on Lumina Image 2.0: limits the guided prediction to this many times the prompt's norm, over the "
        "whole picture. 0 switches it off.",
        place=1,
        step=0.05,
        required=True,
    ),
    Option(
        "discrete_flow_shift",
        6.0,
        "sd-scripts on Lumina Image 2.0: shift of the schedule. More spends more steps on the composition.",
        place=2,
        low=0.01,
        step=0.1,
        required=True,
    ),
    Option(
        "system_prompt_on_negative",
        False,
        "sd-scripts on Lumina Image 2.0: puts the system prompt in front of the negative prompt too "
        "(--add_system_prompt_to_negative_prompt).",
        place=3,
        required=True,
    ),
)


@dataclass(frozen=True)
class Lumina2Recipe(Recipe):
    """What Lumina2's recipes differ in. An empty system prompt leaves out the marker behind it as well.

    Attributes:
        shift: s = shift * x / (1 + (shift - 1) * x) of x = linspace(1, end, steps).
        scheduler: whose Euler step, and where the schedule ends: ``diffusers`` at 1 / steps, ``sd-scripts`` at the
            smallest noise of training, 0.001, shifted a first time.
        template_negative: whether the negative prompt gets the system prompt and the marker too.
        negative_at_1: whether the negative prompt is run at guidance 1 and below too (at 1 it cancels out).
        cfg_trunc_ratio: guidance runs while the model's time (0 noise, 1 image) is below this.
        renorm: what keeps the prompt's norm under guidance: each ``row`` of the latent, up and down, or the whole
            ``sample``, only down.
        renorm_cfg: the sample's limit, as a factor of the prompt's norm; 0 is none.
        qk_norm_eps: of the norms of queries and keys.
        modules: whose transformer and autoencoder round: diffusers', or sd-scripts' under torch.autocast.
        softcap: whether ``text_encoder_attention: auto`` soft-caps Gemma2's attention logits.
        cast_rope: whether Gemma2's rotary frequencies are rounded to the run's dtype.
    """

    shift: float
    scheduler: Literal["diffusers", "sd-scripts"]
    template_negative: bool
    negative_at_1: bool
    cfg_trunc_ratio: float
    renorm: Literal["row", "sample"]
    renorm_cfg: float
    qk_norm_eps: float
    modules: Literal["diffusers", "sd-scripts"]
    softcap: bool
    cast_rope: bool

    @property
    def guided_above(self) -> float:
        # no scale is below 0
        return -1.0 if self.negative_at_1 else 1.0


REFERENCE = Lumina2Recipe(
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="peft",
    lora_application="live",
    merge_arithmetic="float32",
    prompt_flags=False,
    noise="cpu",
    control_images=0,
    posterior="mean",
    options={},
    shift=6.0,
    scheduler="diffusers",
    system_prompt=SYSTEM_PROMPT,
    template_negative=False,
    negative_at_1=False,
    cfg_trunc_ratio=EVERY_STEP,
    renorm="row",
    renorm_cfg=1.0,
    qk_norm_eps=1e-5,
    modules="diffusers",
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
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=8, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
    prompt_flags=True,
    noise="cpu",
    control_images=0,
    posterior="mean",
    options={},
    shift=1.0,
    scheduler="diffusers",
    system_prompt=SYSTEM_PROMPT,
    template_negative=True,
    negative_at_1=False,
    cfg_trunc_ratio=EVERY_STEP,
    renorm="row",
    renorm_cfg=1.0,
    qk_norm_eps=1e-5,
    modules="diffusers",
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

SD_SCRIPTS = Lumina2Recipe(
    name="sd-scripts",
    size=SizeRule(floor=8, small="render", multiple=16),
    lora_arithmetic="sd-scripts",
    lora_application="live",
    merge_arithmetic="stored",
    prompt_flags=False,
    noise="compute device",
    control_images=0,
    posterior="mean",
    options={
        "cfg_trunc_ratio": "cfg_trunc_ratio",
        "renorm_cfg": "renorm_cfg",
        "discrete_flow_shift": "shift",
        "system_prompt_on_negative": "template_negative",
    },
    shift=6.0,
    scheduler="sd-scripts",
    system_prompt="",
    summary="what kohya's lumina_minimal_inference.py renders, for Lumina Image 2.0 alone.",
    template_negative=False,
    negative_at_1=True,
    cfg_trunc_ratio=0.25,
    renorm="sample",
    renorm_cfg=1.0,
    qk_norm_eps=1e-6,
    modules="sd-scripts",
    softcap=False,
    cast_rope=True,
    sources={
        "size": "lumina_minimal_inference.py: latents of width // 8; the patches then want an even number of them",
        "lora_arithmetic": "networks/lora_lumina.py LoRAModule.forward, under autocast",
        "lora_application": "lumina_minimal_inference.py without --merge_lora_weights",
        "merge_arithmetic": "lumina_minimal_inference.py loads with dtype=None, merges, and casts afterwards",
        "prompt_flags": "lumina_minimal_inference.py takes --prompt as it is",
        "noise": "lumina_minimal_inference.py: a generator on the compute device",
        "options": "lumina_minimal_inference.py's arguments of these names and --add_system_prompt_to_negative_prompt",
        "shift": "lumina_minimal_inference.py --discrete_flow_shift 6.0",
        "scheduler": "library/sd3_train_utils.py FlowMatchEulerDiscreteScheduler: sigma_min is already shifted",
        "system_prompt": "lumina_minimal_inference.py --system_prompt ''; library/strategy_lumina.py joins it",
        "template_negative": "library/strategy_lumina.py tokenize(is_negative=True)",
        "negative_at_1": "library/lumina_train_util.py denoise asks for the model's time alone",
        "cfg_trunc_ratio": "lumina_minimal_inference.py --cfg_trunc_ratio 0.25",
        "renorm": "library/lumina_train_util.py denoise",
        "renorm_cfg": "lumina_minimal_inference.py --renorm_cfg 1.0",
        "qk_norm_eps": "library/lumina_models.py RMSNorm's default; diffusers' block passes 1e-5",
        "modules": "library/lumina_models.py and flux_models.py; lumina_minimal_inference.py: denoise under autocast",
        "softcap": "transformers 4.54.1, which sd-scripts pins, runs SDPA without it",
        "cast_rope": "lumina_minimal_inference.py: gemma2.to(device, dtype) casts the buffers as well",
    },
)
