"""The facts of Qwen-Image's text-to-image models: one model with other weights. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ...parts.language_model.qwen2_5_files import QWEN2_5_VL
from ...parts.qwen_image_vae.files import QWEN_IMAGE_VAE
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, NamedParts, Spelling, Words
from ..option import VAE_TILING
from .files import CLASS, TRANSFORMER, folder_config
from .recipes import RECIPES, RECIPES_2512

REPOSITORY = "Qwen/Qwen-Image"
# those that AI Toolkit's interface offers
ADAPTERS = "ostris/accuracy_recovery_adapters/{}_torchao_uint{}.safetensors"

LORA = LoraNames(
    spellings=(
        # diffusers' names: every tool has these, with its own prefix, dots or underscores
        Spelling(""),
        Spelling("text_encoder.", "text_encoder"),
        Spelling("text_encoder.model.", "text_encoder"),
        Spelling("text_encoder.model.language_model.", "text_encoder"),
        Spelling("text_encoders.qwen25_7b.transformer.model.", "text_encoder"),
        Spelling("lora_te_", "text_encoder"),
        Spelling("lora_te_model_", "text_encoder"),
        Spelling("lora_te1_", "text_encoder"),
    ),
    signature=("transformer_blocks", "img_mlp"),
    # a table, and what a Qwen2_5_VLForConditionalGeneration file has beside the encoder
    excluded=("embed_tokens", "lm_head"),
    unused=("lm_head",),
)


def files_of(title: str, repository: str, encoder: PartFiles) -> ModelFiles:
    """Where a model of this family can come from; they differ in their text encoder, which may see pictures."""
    return ModelFiles(
        title=title,
        parts={
            "transformer": PartFiles("denoiser", TRANSFORMER, config=folder_config),
            "text_encoder": encoder,
            "vae": PartFiles("autoencoder", QWEN_IMAGE_VAE, comfy_file="qwen_image_vae.safetensors"),
        },
        main="transformer",
        repository=repository,
        main_class=CLASS,
    )


_ENCODER = PartFiles(
    "encoder",
    QWEN2_5_VL.files(),
    companions=("tokenizer",),
    config=QWEN2_5_VL.folder_config,
    # no single file of Qwen2.5-VL has one inside
    tokenizer=Repository(REPOSITORY, ("tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.jinja"), "tokenizer"),
)

QWEN_IMAGE = ModelFacts(
    id="qwen_image",
    title="Qwen-Image",
    files=files_of("Qwen-Image", REPOSITORY, _ENCODER),
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in RECIPES},
    guidance="classifier-free",
    # AI Toolkit qwen_image.py load_model; base_model.py generate_images asks for an assistant that is not there
    job_files=JobFiles(
        {"extras_name_or_path": NamedParts(("text_encoder", "vae"), base_first=True)},
        file_extras=REPOSITORY,
        stops=("assistant_lora_path", "inference_lora_path"),
    ),
    recovery_adapters=(ADAPTERS.format("qwen_image", 3),),
    takes_system_prompt=False,
    latent=LatentSpace("Wan21", channels=16, downscale=8, frames=True),
    lora=LORA,
    main_blocks=60,
    # what AI Toolkit's own interface trains with
    low_memory_quantization={"transformer": "qfloat8", "text_encoder": "qfloat8"},
    runtime_options=(VAE_TILING,),
    signs={"zero_cond_t": False},
    words=Words(
        search=("qwen", "qwen-image", "qwen image", "2512"),
        inputs={
            "AITKSampler.system_prompt": "Qwen-Image takes none.",
        },
    ),
)

QWEN_IMAGE_2512 = replace(
    QWEN_IMAGE,
    id="qwen_image:2512",
    title="Qwen-Image-2512",
    files=files_of("Qwen-Image-2512", "Qwen/Qwen-Image-2512", _ENCODER),
    recipes={recipe.name: recipe for recipe in RECIPES_2512},
    recovery_adapters=(ADAPTERS.format("qwen_image_2512", 3), ADAPTERS.format("qwen_image_2512", 4)),
)
