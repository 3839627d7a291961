"""The facts of OmniGen2. Imports no torch."""

from __future__ import annotations

from ...parts.flux_vae.files import FLUX_VAE
from ...parts.language_model.qwen2_5_files import QWEN2_5_VL
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, NamedParts, Spelling, Words
from .files import TRANSFORMER
from .recipes import OPTIONS, REFERENCE, TRAINER

_TITLE = "OmniGen2"

MODEL = ModelFacts(
    id="omnigen2",
    title=_TITLE,
    files=ModelFiles(
        title=_TITLE,
        parts={
            "transformer": PartFiles("denoiser", TRANSFORMER),
            "text_encoder": PartFiles(
                "encoder",
                QWEN2_5_VL.files(),
                folder="mllm",
                companions=("processor",),
                config=QWEN2_5_VL.folder_config,
                # ComfyUI's file has none inside
                tokenizer=Repository("OmniGen2/OmniGen2", ("processor/tokenizer*.json",), "processor"),
            ),
            "vae": PartFiles("autoencoder", FLUX_VAE, comfy_file="ae.safetensors"),
        },
        main="transformer",
        repository="OmniGen2/OmniGen2",
        main_class="OmniGen2Transformer2DModel",
    ),
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER)},
    guidance="classifier-free",
    # AI Toolkit omnigen2/__init__.py load_model; base_model.py generate_images asks for an assistant that is not there
    job_files=JobFiles(
        {"extras_name_or_path": NamedParts(("text_encoder", "vae"))},
        stops=("assistant_lora_path", "inference_lora_path"),
        missing=("accuracy_recovery_adapter",),
    ),
    latent=LatentSpace("Flux", channels=16, downscale=8),
    lora=LoraNames(
        spellings=(Spelling(""),),
        # Lumina Image 2.0 has the same blocks, under `transformer.`
        signature=("diffusion_model.layers.", "feed_forward.linear_1"),
    ),
    main_blocks=32,
    recipe_options=OPTIONS,
    words=Words(search=("omnigen2", "image guidance")),
)
