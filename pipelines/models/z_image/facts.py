"""The facts of Z-Image, Turbo and De-Turbo: one model with other weights. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ...parts.flux_vae.files import FLUX_VAE
from ...parts.language_model.qwen3_files import qwen3
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, NamedParts, Spelling, Words
from .files import CLASS, TRANSFORMER, original_modules
from .recipes import RECIPES

# all layers: a LoRA of the text encoder may change the last one, which nobody reads
QWEN3 = qwen3()
_TURBO_REPOSITORY = "Tongyi-MAI/Z-Image-Turbo"
_TOKENIZER = ("tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.jinja")

_LORA = LoraNames(
    spellings=(
        # diffusers' names: AI Toolkit, diffusers, PEFT, musubi-tuner, OneTrainer
        Spelling(""),
        # the original ones, with queries, keys and values in one: ComfyUI, OneTrainer, musubi-tuner's converter
        Spelling("", names=original_modules),
        Spelling("text_encoder.", "text_encoder"),
        Spelling("text_encoder.model.", "text_encoder"),
        Spelling("text_encoders.qwen3_4b.transformer.model.", "text_encoder"),
        Spelling("lora_te_", "text_encoder"),
        Spelling("lora_te_model_", "text_encoder"),
        Spelling("lora_te1_", "text_encoder"),
    ),
    # other models of these blocks call it attn
    signature=("layers.", "attention.to_q"),
    # a table, and what a Qwen3ForCausalLM file has beside the encoder
    excluded=("embed_tokens", "lm_head"),
    unused=("norm_final", "lm_head"),
)


def _files(title: str, repository: str, encoder: Repository | None, vae: Repository | None) -> ModelFiles:
    return ModelFiles(
        title=title,
        parts={
            "transformer": PartFiles("denoiser", TRANSFORMER),
            "text_encoder": PartFiles(
                "encoder",
                QWEN3.files(),
                companions=("tokenizer",),
                config=QWEN3.folder_config,
                repository=encoder,
                # no single file of Qwen3 has one inside
                tokenizer=Repository(_TURBO_REPOSITORY, _TOKENIZER, "tokenizer"),
            ),
            "vae": PartFiles("autoencoder", FLUX_VAE, repository=vae, comfy_file="ae.safetensors"),
        },
        main="transformer",
        repository=repository,
        main_class=CLASS,
    )


Z_IMAGE = ModelFacts(
    id="zimage",
    title="Z-Image",
    files=_files("Z-Image", "Tongyi-MAI/Z-Image", None, None),
    defaults=Defaults(steps=30, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in RECIPES},
    guidance="classifier-free",
    # AI Toolkit z_image.py load_transformer and load_model
    job_files=JobFiles(
        {"extras_name_or_path": NamedParts(("text_encoder", "vae"), base_first=True)},
        file_extras=_TURBO_REPOSITORY,
    ),
    takes_system_prompt=False,
    recovery_adapters=(),
    latent=LatentSpace("Flux", channels=16, downscale=8),
    lora=_LORA,
    main_blocks=30,
    words=Words(
        search=("z-image", "zimage", "z image turbo", "tongyi"),
        inputs={
            "AITKSampler.negative_prompt": "Z-Image's reference pipeline uses it above 0.",
            "AITKSampler.guidance_scale": "Z-Image Turbo is made for 1: none in trainer preview, where 1 is taken off; "
            "the reference pipeline guides by it.",
            "AITKSampler.system_prompt": "Z-Image takes none.",
        },
    ),
)

TURBO = replace(
    Z_IMAGE,
    id="zimage:turbo",
    title="Z-Image Turbo",
    files=_files("Z-Image Turbo", _TURBO_REPOSITORY, None, None),
    defaults=replace(Z_IMAGE.defaults, steps=8, guidance_scale=1.0),
    # AI Toolkit toolkit/models/v2/diffusion_models/z_image.py (64a20f51)
    job_files=replace(Z_IMAGE.job_files, comfy_weights=("z_image_turbo_int8_convrot", "z_image_turbo_bf16")),
    training_adapter="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
)

DE_TURBO = replace(
    Z_IMAGE,
    id="zimage:deturbo",
    title="Z-Image De-Turbo",
    # the repository holds the transformer alone; AI Toolkit takes the rest from Turbo's
    files=_files(
        "Z-Image De-Turbo",
        "ostris/Z-Image-De-Turbo",
        Repository(_TURBO_REPOSITORY, ("text_encoder/*.json", "text_encoder/*.safetensors", *_TOKENIZER), whole=True),
        Repository(_TURBO_REPOSITORY, ("vae/*.json", "vae/*.safetensors"), whole=True),
    ),
    defaults=replace(Z_IMAGE.defaults, steps=25, guidance_scale=3.0),
)
