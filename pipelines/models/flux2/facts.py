"""The facts of FLUX.2-dev and FLUX.2-klein. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ...parts.flux2_vae.files import FLUX2_VAE
from ...parts.flux2_vae.files import folder_config as vae_folder_config
from ...parts.language_model.files import REPOSITORY_FILES, TOKENIZER_FILES, LanguageModelFiles
from ...parts.language_model.mistral_files import mistral
from ...parts.language_model.qwen3_files import qwen3
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, NamedParts, Spelling, Words
from .files import CLASS, TRANSFORMER, folder_config
from .names import diffusers_modules, names_of_flux1
from .recipes import KLEIN_REFERENCE, KLEIN_TRAINER, REFERENCE, TRAINER

# the hidden states that stand side by side in an embedding, counted from the token embeddings, 0; AI Toolkit
# flux2/src/pipeline.py
MISTRAL_STATES, QWEN3_STATES = (10, 20, 30), (9, 18, 27)
MISTRAL, QWEN3 = mistral(layers=MISTRAL_STATES[-1]), qwen3(layers=QWEN3_STATES[-1])
_VAE_FILE = "ae.safetensors"
_COMFY_VAE = "flux2-vae.safetensors"

_LORA = LoraNames(
    # the released names: AI Toolkit, ComfyUI, kohya's scripts, musubi-tuner; and diffusers'
    spellings=(Spelling(""), Spelling("", names=diffusers_modules), Spelling("", names=names_of_flux1)),
    # FLUX.1 has the double blocks' names too, but names its single blocks' layers alike only in this layout
    signature=("single_stream_modulation",),
)


def _files(
    title: str, repository: str, file: str, encoder: LanguageModelFiles, encoder_repository: str, vae: PartFiles
) -> ModelFiles:
    return ModelFiles(
        title=title,
        parts={
            "transformer": PartFiles("denoiser", TRANSFORMER, config=folder_config, file=file),
            # what AI Toolkit trains and previews with; FLUX.2-dev's own repository holds another version's weights
            "text_encoder": PartFiles(
                "encoder",
                encoder.files(),
                companions=("tokenizer",),
                config=encoder.folder_config,
                repository=Repository(encoder_repository, REPOSITORY_FILES),
                # of ComfyUI's files of Mistral most have one inside
                tokenizer=Repository(encoder_repository, TOKENIZER_FILES),
            ),
            "vae": vae,
        },
        main="transformer",
        repository=repository,
        main_class=CLASS,
    )


_VAE = PartFiles("autoencoder", FLUX2_VAE, config=vae_folder_config, file=_VAE_FILE, comfy_file=_COMFY_VAE)
_KLEIN_VAE = replace(_VAE, repository=Repository("ai-toolkit/flux2_vae", (_VAE_FILE,)))

FLUX2 = ModelFacts(
    id="flux2",
    title="FLUX.2-dev",
    files=_files(
        "FLUX.2-dev",
        "black-forest-labs/FLUX.2-dev",
        "flux2-dev.safetensors",
        MISTRAL,
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        _VAE,
    ),
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER)},
    guidance="embedded",
    encoder_qtype="qtype_te since 0.13",  # AI Toolkit flux2_model.py load_te; models/v2/_mixin.py from 0.13 on
    # AI Toolkit flux2_model.py load_model; base_model.py generate_images asks for an assistant that is not there
    job_files=JobFiles(
        {"vae_path": NamedParts(("vae",), alone=True, base_first=True)},
        stops=("assistant_lora_path", "inference_lora_path"),
    ),
    recovery_adapters=(),
    latent=LatentSpace("Flux2", channels=128, downscale=16),
    lora=_LORA,
    main_blocks=56,
    signs={"guidance_embed": True},
    # the model page: Mistral in qfloat8, the transformer as it is
    quantization={"text_encoder": "qfloat8"},
    # what AI Toolkit's own interface trains with
    low_memory_quantization={"transformer": "qfloat8"},
    words=Words(
        search=("flux2", "flux.2", "klein"),
        inputs={
            "LoadAITKModel.weights": "default takes FLUX.2's text encoder from where AI Toolkit takes it.",
            "AITKSampler.negative_prompt": "FLUX.2-dev has its guidance built in and does not use it.",
            "AITKSampler.guidance_scale": "FLUX.2-dev has it as an input and is called once.",
        },
    ),
)

KLEIN_4B = replace(
    FLUX2,
    id="flux2_klein_4b",
    title="FLUX.2-klein 4B",
    files=_files(
        "FLUX.2-klein 4B",
        "black-forest-labs/FLUX.2-klein-base-4B",
        "flux-2-klein-base-4b.safetensors",
        QWEN3,
        "Qwen/Qwen3-4B",
        _KLEIN_VAE,
    ),
    recipes={recipe.name: recipe for recipe in (KLEIN_REFERENCE, KLEIN_TRAINER)},
    guidance="classifier-free",
    takes_system_prompt=False,
    encoder_qtype="qtype_te",  # AI Toolkit flux2_klein_model.py load_te
    main_blocks=25,
    # three states of Qwen3 4B, of 2560 values each
    signs={"guidance_embed": False, "context_in_dim": 7680},
    words=Words(inputs={"AITKSampler.system_prompt": "FLUX.2-klein takes none."}),
)

KLEIN_9B = replace(
    KLEIN_4B,
    id="flux2_klein_9b",
    title="FLUX.2-klein 9B",
    files=_files(
        "FLUX.2-klein 9B",
        "black-forest-labs/FLUX.2-klein-base-9B",
        "flux-2-klein-base-9b.safetensors",
        QWEN3,
        "Qwen/Qwen3-8B",
        _KLEIN_VAE,
    ),
    main_blocks=32,
    signs={"guidance_embed": False, "context_in_dim": 12288},
)
