"""The facts of Lumina Image 2.0. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from ...parts.flux_vae.files import FLUX_VAE
from ...parts.language_model.gemma2_files import GEMMA2
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ...weights.pieces import Piece
from ..facts import Defaults, JobFiles, LatentSpace, LoraNames, ModelFacts, NamedParts, Spelling, Words
from ..option import Option
from .files import TRANSFORMER, original_modules
from .recipes import OPTIONS, REFERENCE, SD_SCRIPTS, TRAINER

_TITLE = "Lumina Image 2.0"
_REPOSITORY = "Alpha-VLLM/Lumina-Image-2.0"
TEXT_ENCODER_ATTENTION = Option(
    "text_encoder_attention",
    "auto",
    "Soft-capping of the attention logits of Gemma2, Lumina Image 2.0's text encoder. auto: off, as under the versions "
    "that AI Toolkit pins. softcap: on, as the newest transformers does by itself.",
    place=0,
    choices=("auto", "softcap", "no softcap"),
    required=True,
)


def _original_names(modules: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    return {name: tuple(map(Piece, own)) for name, own in original_modules(modules).items()}


MODEL = ModelFacts(
    id="lumina2",
    title=_TITLE,
    files=ModelFiles(
        title=_TITLE,
        parts={
            "transformer": PartFiles("denoiser", TRANSFORMER),
            "text_encoder": PartFiles(
                "encoder",
                GEMMA2.files(),
                companions=("tokenizer",),
                config=GEMMA2.folder_config,
                # ComfyUI's own file has one inside; GGUF files, and those of its node Save CLIP, have none
                tokenizer=Repository(_REPOSITORY, ("tokenizer/*.json", "tokenizer/*.model"), "tokenizer"),
            ),
            "vae": PartFiles("autoencoder", FLUX_VAE, comfy_file="ae.safetensors"),
        },
        main="transformer",
        repository=_REPOSITORY,
        main_class="Lumina2Transformer2DModel",
    ),
    defaults=Defaults(steps=25, guidance_scale=4.0, seed=42, width=1024, height=1024),
    recipes={recipe.name: recipe for recipe in (REFERENCE, TRAINER, SD_SCRIPTS)},
    guidance="classifier-free",
    # AI Toolkit stable_diffusion_model.py load_model: neither vae_path nor extras_name_or_path is read in this branch
    job_files=JobFiles(
        {"te_name_or_path": NamedParts(("text_encoder",), alone=True)},
        stops=("lora_path", "assistant_lora_path", "inference_lora_path"),
    ),
    preview_sampler="flowmatch",  # AI Toolkit stable_diffusion_model.py generate_images; others pass it by
    encoder_qtype="qtype",  # AI Toolkit stable_diffusion_model.py load_model, 0.13 too
    latent=LatentSpace("Flux", channels=16, downscale=8),
    lora=LoraNames(
        spellings=(
            # diffusers' names: AI Toolkit, diffusers, PEFT
            Spelling(""),
            # the original ones: ComfyUI, kohya's networks.lora_lumina, and LyCORIS on kohya
            Spelling("", names=_original_names),
            Spelling("lora_te_", "text_encoder"),
            Spelling("lora_te_model_", "text_encoder"),
            Spelling("lora_te1_", "text_encoder"),
            Spelling("text_encoder.", "text_encoder"),
            Spelling("text_encoder.model.", "text_encoder"),
            Spelling("text_encoders.gemma2_2b.transformer.model.", "text_encoder"),
        ),
        signature=("transformer.layers.", "feed_forward.linear_1"),
        # a table, and what a Gemma2ForCausalLM file has beside the encoder
        excluded=("embed_tokens", "lm_head"),
        unused=("norm_final", "lm_head"),
    ),
    main_blocks=26,
    recipe_options=OPTIONS,
    runtime_options=(TEXT_ENCODER_ATTENTION,),
    words=Words(
        search=("lumina", "kohya", "sd-scripts", "gemma", "softcap"),
        inputs={
            "AITKSampler.system_prompt": "For a LoRA of sd-scripts: the one of its training.",
            "AITKSampler.seed": "Only sd-scripts draws it on the compute device.",
        },
    ),
)
