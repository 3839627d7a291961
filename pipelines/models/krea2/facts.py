"""The facts of Krea 2 and Krea 2 Turbo: one model with other weights. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ...parts.language_model.files import REPOSITORY_FILES, TOKENIZER_FILES, LanguageModelFiles
from ...parts.language_model.qwen3_vl_files import qwen3_vl
from ...parts.language_model.qwen3_vl_seeing_files import seeing_qwen3_vl
from ...parts.qwen_image_vae.files import QWEN_IMAGE_VAE
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, Spelling, Words
from ..option import VAE_TILING
from . import edit_recipes
from .files import CLASS, TRANSFORMER, folder_config
from .names import diffusers_modules
from .recipes import OPTIONS, RECIPES, STATES, TEXT_LENGTH

# the last state that is read is what the layer of that number gets
QWEN3_VL, SEEING = qwen3_vl(layers=STATES[-1]), seeing_qwen3_vl(layers=STATES[-1])
_ENCODER, _VAE, _PROCESSOR = "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen-Image", "preprocessor_config.json"

_LORA = LoraNames(
    spellings=(
        # the released names: AI Toolkit, ComfyUI, musubi-tuner, OneTrainer; and diffusers'
        Spelling(""),
        Spelling("", names=diffusers_modules),
        Spelling("text_encoder.", "text_encoder"),
        Spelling("text_encoder.model.", "text_encoder"),
        Spelling("text_encoder.model.language_model.", "text_encoder"),
        Spelling("text_encoders.qwen3vl_4b.transformer.model.", "text_encoder"),
        Spelling("lora_te_", "text_encoder"),
        Spelling("lora_te1_", "text_encoder"),
    ),
    signature=("blocks.", "attn.wq", "mlp.gate"),
    # a table, and what a whole Qwen3-VL has beside the layers
    excluded=("embed_tokens", "lm_head"),
    unused=("lm_head", "last.down", "last.up"),
)

# AI Toolkit krea2.py and krea2/src/pipeline.py: what model_kwargs they read, and its values where a job says nothing
_KWARGS = {
    "schedule_mu": 0.0,
    "schedule_y1": 0.5,
    "schedule_y2": 1.15,
    "schedule_min_res": 256,
    "schedule_max_res": 1280,
    "max_text_length": TEXT_LENGTH,
    "checkpoint_filename": None,
    "text_encoder_path": _ENCODER,
    "vae_path": _VAE,
    "mmdit_config": None,
}


def _files(title: str, repository: str, encoder: LanguageModelFiles = QWEN3_VL) -> ModelFiles:
    return ModelFiles(
        title=title,
        parts={
            # krea/Krea-2-Raw has raw.safetensors; of a folder AI Toolkit takes the only such file
            "transformer": PartFiles(
                "denoiser",
                TRANSFORMER,
                config=folder_config,
                file=f"{repository.rpartition('-')[2].lower()}.safetensors",
                lone_file=True,
            ),
            "text_encoder": PartFiles(
                "encoder",
                encoder.files(),
                companions=("tokenizer",),
                config=encoder.folder_config,
                repository=Repository(_ENCODER, (*REPOSITORY_FILES, _PROCESSOR)),
                # no single file of Qwen3-VL has one inside
                tokenizer=Repository(_ENCODER, (*TOKENIZER_FILES, _PROCESSOR)),
            ),
            "vae": PartFiles(
                "autoencoder",
                QWEN_IMAGE_VAE,
                repository=Repository(_VAE, ("vae/*.json", "vae/*.safetensors"), whole=True),
                comfy_file="qwen_image_vae.safetensors",
            ),
        },
        main="transformer",
        repository=repository,
        main_class=CLASS,
    )


KREA2 = ModelFacts(
    id="krea2",
    title="Krea 2",
    files=_files("Krea 2", "krea/Krea-2-Raw"),
    defaults=Defaults(steps=30, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in RECIPES},
    guidance="classifier-free",
    takes_system_prompt=False,
    # AI Toolkit krea2.py load_model; base_model.py generate_images asks for an adapter that is not there
    job_files=JobFiles(
        stops=("inference_lora_path",),
        kwargs=_KWARGS,
        signs={"edit": False},
    ),
    latent=LatentSpace("Wan21", channels=16, downscale=8, frames=True),
    lora=_LORA,
    main_blocks=28,
    # AI Toolkit krea2.py load_model calls quantize_model: it takes any
    recovery_adapters=(),
    # what AI Toolkit's own interface trains with
    low_memory_quantization={"transformer": "qfloat8", "text_encoder": "qfloat8"},
    recipe_options=OPTIONS,
    runtime_options=(VAE_TILING,),
    words=Words(
        search=("krea", "krea 2", "krea2"),
        inputs={
            "LoadAITKModel.weights": "default takes Krea 2's text encoder and VAE from where AI Toolkit takes them.",
            "AITKSampler.negative_prompt": "Krea 2's earliest previews used it above 0.",
            "AITKSampler.guidance_scale": "Krea 2 Turbo is made for 1: none, since 1 is taken off.",
            "AITKSampler.system_prompt": "Krea 2's template has its own.",
        },
    ),
)

TURBO = replace(
    KREA2,
    id="krea2:turbo",
    title="Krea 2 Turbo",
    files=_files("Krea 2 Turbo", "krea/Krea-2-Turbo"),
    defaults=replace(KREA2.defaults, steps=9, guidance_scale=1.0),
    training_adapter="ostris/krea2_turbo_training_adapter/krea2_turbo_training_adapter_v1.safetensors",
)

O_EDIT = replace(
    KREA2,
    id="krea2:o_edit",
    title="Krea 2 Edit",
    files=_files("Krea 2 Edit", "krea/Krea-2-Raw", SEEING),
    recipes={recipe.name: recipe for recipe in edit_recipes.RECIPES},
    recipe_options=edit_recipes.OPTIONS,
    job_files=replace(
        KREA2.job_files,
        kwargs=_KWARGS
        | {
            "kv_cache": False,
            "match_target_res": False,
            "vlm_max_pixels": edit_recipes.SEEN_PIXELS,
            "control_image_max_pixels": edit_recipes.ENCODED_PIXELS,
        },
        signs={"edit": True},
    ),
    words=Words(search=("krea 2 edit",), inputs={"AITKSampler.system_prompt": "Krea 2's template has its own."}),
)

O_EDIT_TURBO = replace(
    O_EDIT,
    id="krea2:o_edit_turbo",
    title="Krea 2 Turbo Edit",
    files=_files("Krea 2 Turbo Edit", "krea/Krea-2-Turbo", SEEING),
    defaults=replace(TURBO.defaults, steps=8),
    training_adapter=TURBO.training_adapter,
)
