"""The facts of FLUX.2-dev and FLUX.2-klein, and their recipes side by side. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...checkpoint import Checkpoint
from ...sizes import SizeRule
from ..facts import Defaults, LoraNames, ModelFacts, PartFacts, Recipe, Repository, Spelling
from .files import TRANSFORMER, folder_config
from .names import diffusers_modules
from .text_files import MISTRAL, MISTRAL_FILES, QWEN3, QWEN3_FILES
from .vae_files import VAE
from .vae_files import folder_config as vae_folder_config

if TYPE_CHECKING:
    from ..runtime import ModelRuntime
    from .text_files import TextEncoderFacts

# AI Toolkit flux2/src/pipeline.py; the line break is part of it
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
TEXT_LENGTH = 512  # tokens, template counted
_DOWNSCALE = 16
_LARGEST_SIDE = 16384  # pixels; positions are computed, so that only ComfyUI's own widgets end somewhere
# a part's files in the root of a transformers repository; others hold the weights a second time in another format
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "chat_template*", "vocab.json", "merges.txt")
_LANGUAGE_MODEL = (
    "config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", *_TOKENIZER,
)  # fmt: skip


@dataclass(frozen=True)
class Flux2Recipe(Recipe):
    """What FLUX.2's recipes differ in; schedule, loop and guidance are AI Toolkit's in both.

    Attributes:
        cast_rope: whether the text encoder's rotary frequencies are rounded to the run's dtype: ``unquantised`` is only
            where its weights are not quantised.
    """

    cast_rope: str


_REFERENCE = Flux2Recipe(
    name="reference pipeline",
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_dtype="run",
    prompt_flags=False,
    noise="cpu",
    system_prompt=SYSTEM_MESSAGE,
    control_images=0,
    posterior="mean",
    options={},
    cast_rope="never",
    sources={
        "size": "model page flux2: sides are floored to a multiple of 32",
        "lora_application": "model page: manual LoRA merge into the transformer; here in float32",
        "lora_arithmetic": "on quantised weights, which the page does not know, AI Toolkit's live branch",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "system_prompt": "AI Toolkit flux2/src/pipeline.py SYSTEM_MESSAGE, which the page's pipeline imports",
        "control_images": "model page: control image, no",
        "cast_rope": "ai-toolkit-inference: from_pretrained, then to(device) without a dtype",
    },
)
_TRAINER = Flux2Recipe(
    name="trainer preview",
    size=SizeRule(floor=16, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_dtype="run",
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
_KLEIN_REFERENCE = replace(
    _REFERENCE,
    size=SizeRule(floor=16, small="error", multiple=16),
    system_prompt="",
    sources={
        **_REFERENCE.sources,
        "size": "ai-toolkit-inference flux2_klein.py: resolution_divisor 16",
        "system_prompt": "AI Toolkit flux2/src/pipeline.py: Qwen3's messages have none",
    },
)
_KLEIN_TRAINER = replace(
    _TRAINER,
    system_prompt="",
    cast_rope="unquantised",
    sources={
        **_TRAINER.sources,
        "system_prompt": "AI Toolkit flux2/src/pipeline.py: Qwen3's messages have none",
        "cast_rope": "AI Toolkit flux2_klein_model.py load_te: cast with a dtype only where it is not quantised",
    },
)

_LORA = LoraNames(
    spellings=(
        # AI Toolkit and ComfyUI; all-in-one tools; PEFT; nothing in front
        Spelling("diffusion_model."),
        Spelling("model.diffusion_model."),
        Spelling("transformer."),
        Spelling("base_model.model.diffusion_model."),
        Spelling("base_model.model."),
        Spelling(""),
        # AI Toolkit with old_lokr_format, and LyCORIS
        Spelling("lycoris_", separator="_"),
        # kohya's and musubi-tuner's
        Spelling("lora_unet_", separator="_"),
        Spelling("lora_transformer_", separator="_"),
        # diffusers' names
        Spelling("transformer.", names=diffusers_modules),
        Spelling("diffusion_model.", names=diffusers_modules),
        Spelling("base_model.model.transformer.", names=diffusers_modules),
        Spelling("base_model.model.", names=diffusers_modules),
        Spelling("", names=diffusers_modules),
        Spelling("lycoris_", separator="_", names=diffusers_modules),
        Spelling("lora_unet_", separator="_", names=diffusers_modules),
        Spelling("lora_transformer_", separator="_", names=diffusers_modules),
    ),
    # FLUX.1 has the double blocks' names too, but names its single blocks' layers alike only in this layout
    signature=("single_stream_modulation",),
)


def _dev() -> ModelRuntime:
    from .runtime import Flux2Runtime

    return Flux2Runtime(FLUX2, MISTRAL)


def _klein_4b() -> ModelRuntime:
    from .runtime import Flux2Runtime

    return Flux2Runtime(KLEIN_4B, QWEN3)


def _klein_9b() -> ModelRuntime:
    from .runtime import Flux2Runtime

    return Flux2Runtime(KLEIN_9B, QWEN3)


def _largest_side(checkpoint: Checkpoint) -> int:
    return _LARGEST_SIDE


def _transformer(file: str) -> PartFacts:
    return PartFacts(TRANSFORMER, config=folder_config, file=file)


def _text_encoder(facts: TextEncoderFacts, repository: str) -> PartFacts:
    mistral = facts is MISTRAL
    return PartFacts(
        MISTRAL_FILES if mistral else QWEN3_FILES,
        companions=("tokenizer",),
        config=facts.folder_config,
        repository=Repository(repository, _LANGUAGE_MODEL),
        # ComfyUI's files of Mistral have one inside
        tokenizer=None if mistral else Repository(repository, _TOKENIZER),
    )


_VAE_FILE = "ae.safetensors"

FLUX2 = ModelFacts(
    id="flux2",
    title="FLUX.2-dev",
    repo_id="black-forest-labs/FLUX.2-dev",
    parts={
        "transformer": _transformer("flux2-dev.safetensors"),
        # what AI Toolkit trains and previews with; FLUX.2-dev's own repository holds another version's weights
        "text_encoder": _text_encoder(MISTRAL, "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
        "vae": PartFacts(VAE, config=vae_folder_config, file=_VAE_FILE),
    },
    transformer_class="Flux2Transformer",
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (_REFERENCE, _TRAINER)},
    guidance="embedded",
    latent_channels=128,
    latent_downscale=_DOWNSCALE,
    latent_format="Flux2",
    # the model page: Mistral in qfloat8, the transformer as it is
    quantization={"transformer": "none", "text_encoder": "qfloat8"},
    # what AI Toolkit's own interface trains with
    low_memory_quantization={"transformer": "qfloat8"},
    lora=_LORA,
    load_runtime=_dev,
    largest_side=_largest_side,
)

KLEIN_4B = replace(
    FLUX2,
    id="flux2_klein_4b",
    title="FLUX.2-klein 4B",
    repo_id="black-forest-labs/FLUX.2-klein-base-4B",
    parts={
        "transformer": _transformer("flux-2-klein-base-4b.safetensors"),
        "text_encoder": _text_encoder(QWEN3, "Qwen/Qwen3-4B"),
        "vae": PartFacts(
            VAE, config=vae_folder_config, file=_VAE_FILE, repository=Repository("ai-toolkit/flux2_vae", (_VAE_FILE,))
        ),
    },
    recipes={recipe.name: recipe for recipe in (_KLEIN_REFERENCE, _KLEIN_TRAINER)},
    guidance="classifier-free",
    load_runtime=_klein_4b,
)

KLEIN_9B = replace(
    KLEIN_4B,
    id="flux2_klein_9b",
    title="FLUX.2-klein 9B",
    repo_id="black-forest-labs/FLUX.2-klein-base-9B",
    parts={
        **KLEIN_4B.parts,
        "transformer": _transformer("flux-2-klein-base-9b.safetensors"),
        "text_encoder": _text_encoder(QWEN3, "Qwen/Qwen3-8B"),
    },
    load_runtime=_klein_9b,
)
