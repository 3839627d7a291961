"""The facts of Lumina Image 2.0, and its recipes side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...checkpoint import Checkpoint
from ...errors import FileError
from ...parts.flux_vae import FLUX_VAE
from ...pieces import Piece
from ...sizes import SizeRule
from ..facts import Defaults, LoraNames, ModelFacts, PartFacts, Recipe, Spelling
from .files import TEXT_ENCODER, TRANSFORMER, original_modules

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
EVERY_STEP = 2.0  # a model time that is never reached


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
        encoder_sdpa: whether Gemma2 runs SDPA; else transformers' own choice. Without soft-capping alone.
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
    encoder_sdpa: bool
    softcap: bool
    cast_rope: bool


REFERENCE = Lumina2Recipe(
    name="reference pipeline",
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="peft",
    lora_application="live",
    merge_dtype="run",
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
    encoder_sdpa=False,
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
    merge_dtype="run",
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
    encoder_sdpa=False,
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
    merge_dtype="stored",
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
    template_negative=False,
    negative_at_1=True,
    cfg_trunc_ratio=0.25,
    renorm="sample",
    renorm_cfg=1.0,
    qk_norm_eps=1e-6,
    modules="sd-scripts",
    encoder_sdpa=True,
    softcap=False,
    cast_rope=True,
    sources={
        "size": "lumina_minimal_inference.py: latents of width // 8; the patches then want an even number of them",
        "lora_arithmetic": "networks/lora_lumina.py LoRAModule.forward, under autocast",
        "lora_application": "lumina_minimal_inference.py without --merge_lora_weights",
        "merge_dtype": "lumina_minimal_inference.py loads with dtype=None, merges, and casts afterwards",
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
        "encoder_sdpa": "transformers 4.54.1, which sd-scripts pins, takes SDPA for Gemma2",
        "softcap": "transformers 4.54.1, which sd-scripts pins, runs SDPA without it",
        "cast_rope": "lumina_minimal_inference.py: gemma2.to(device, dtype) casts the buffers as well",
    },
)


def _largest_side(checkpoint: Checkpoint) -> int:
    config = checkpoint.config("transformer")
    # the table has one row per patch; the first axis counts text tokens. 512 patches = 8192 pixels in the release
    lengths, patch = config.get("axes_lens", (300, 512, 512)), config.get("patch_size", 2)
    numbers = [*lengths, patch] if isinstance(lengths, (list, tuple)) else [None]
    if len(numbers) != 4 or not all(isinstance(number, int) and number > 0 for number in numbers):
        where = checkpoint.source("transformer").config_name
        raise FileError(f"{checkpoint.name!r}: {where} has axes_lens {lengths} and patch_size {patch}.")
    if lengths[0] <= TEXT_LENGTH:
        raise FileError(
            f"{checkpoint.name!r} holds texts of {lengths[0] - 1} tokens; this model is run with {TEXT_LENGTH}."
        )
    return min(lengths[1:]) * patch * VAE_DOWNSCALE


def _original_names(modules: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    return {name: tuple(map(Piece, own)) for name, own in original_modules(modules).items()}


def _load_runtime() -> ModelRuntime:
    from .runtime import Lumina2Runtime

    return Lumina2Runtime()


MODEL = ModelFacts(
    id="lumina2",
    title="Lumina Image 2.0",
    repo_id="Alpha-VLLM/Lumina-Image-2.0",
    parts={
        "transformer": PartFacts(TRANSFORMER),
        "text_encoder": PartFacts(TEXT_ENCODER, companions=("tokenizer",)),
        "vae": PartFacts(FLUX_VAE),
    },
    transformer_class="Lumina2Transformer2DModel",
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER, SD_SCRIPTS)},
    guidance="classifier-free",
    latent_channels=16,
    latent_downscale=VAE_DOWNSCALE,
    latent_format="Flux",
    quantization={"transformer": "none", "text_encoder": "none"},
    lora=LoraNames(
        spellings=(
            # AI Toolkit and diffusers; PEFT; nothing in front
            Spelling("transformer."),
            Spelling("base_model.model.transformer."),
            Spelling("base_model.model."),
            Spelling(""),
            # AI Toolkit with old_lokr_format
            Spelling("lycoris_", separator="_"),
            # ComfyUI
            Spelling("diffusion_model.", names=_original_names),
            Spelling("model.diffusion_model.", names=_original_names),
            Spelling("base_model.model.diffusion_model.", names=_original_names),
            Spelling("transformer.", names=_original_names),
            Spelling("", names=_original_names),
            Spelling("diffusion_model."),
            # kohya's networks.lora_lumina, and LyCORIS on kohya
            Spelling("lora_unet_", separator="_", names=_original_names),
            Spelling("lycoris_", separator="_", names=_original_names),
            Spelling("lora_unet_", separator="_"),
            Spelling("lora_te_", "text_encoder", "_"),
            Spelling("lora_te1_", "text_encoder", "_"),
            Spelling("text_encoder.", "text_encoder"),
            Spelling("text_encoder.model.", "text_encoder"),
            Spelling("base_model.model.text_encoder.", "text_encoder"),
            Spelling("text_encoders.gemma2_2b.transformer.model.", "text_encoder"),
        ),
        signature=("transformer.layers.", "feed_forward.linear_1"),
        # a table, and what a Gemma2ForCausalLM file has beside the encoder
        excluded=("embed_tokens", "lm_head"),
    ),
    load_runtime=_load_runtime,
    largest_side=_largest_side,
)
