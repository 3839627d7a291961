"""The files that people have of each model, with their addresses; and what a template says of each model.

Addresses are those that ComfyUI's own templates have. Lumina's three files are those that sd-scripts' documentation and
diffusers' tests name, and the adapter is the one of AI Toolkit's interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...pipelines.models.recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW
from .drawing import ModelFile

_HUB = "https://huggingface.co"
_Z_IMAGE_TURBO = f"{_HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"
_FLUX2 = f"{_HUB}/Comfy-Org/flux2-dev/resolve/main/split_files"
_LUMINA = f"{_HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main"
_OMNIGEN2 = f"{_HUB}/Comfy-Org/Omnigen2_ComfyUI_repackaged/resolve/main/split_files"


def _file(root: str, folder: str, name: str) -> ModelFile:
    return ModelFile(name, f"{root}/{folder}/{name}", folder)


QWEN3_4B = _file(_Z_IMAGE_TURBO, "text_encoders", "qwen_3_4b.safetensors")
FLUX_VAE = _file(f"{_LUMINA}/split_files", "vae", "ae.safetensors")
FLUX2_VAE = _file(_FLUX2, "vae", "flux2-vae.safetensors")
GEMMA2 = _file(f"{_LUMINA}/split_files", "text_encoders", "gemma_2_2b_fp16.safetensors")
LUMINA_ALL_IN_ONE = ModelFile("lumina_2.safetensors", f"{_LUMINA}/all_in_one/lumina_2.safetensors", "checkpoints")
TURBO_ADAPTER = ModelFile(
    "zimage_turbo_training_adapter_v2.safetensors",
    f"{_HUB}/ostris/zimage_turbo_training_adapter/resolve/main/zimage_turbo_training_adapter_v2.safetensors",
    "loras",
)

# model -> transformer, text encoder, VAE
COMFY_FILES: Mapping[str, tuple[ModelFile, ModelFile, ModelFile]] = {
    "lumina2": (
        _file(f"{_LUMINA}/split_files", "diffusion_models", "lumina_2_model_bf16.safetensors"),
        GEMMA2,
        FLUX_VAE,
    ),
    "flux2": (
        _file(_FLUX2, "diffusion_models", "flux2_dev_fp8mixed.safetensors"),
        _file(_FLUX2, "text_encoders", "mistral_3_small_flux2_fp8.safetensors"),
        FLUX2_VAE,
    ),
    "flux2_klein_4b": (
        _file(
            f"{_HUB}/Comfy-Org/flux2-klein/resolve/main/split_files",
            "diffusion_models",
            "flux-2-klein-base-4b.safetensors",
        ),
        QWEN3_4B,
        FLUX2_VAE,
    ),
    "omnigen2": (
        _file(_OMNIGEN2, "diffusion_models", "omnigen2_fp16.safetensors"),
        _file(_OMNIGEN2, "text_encoders", "qwen_2.5_vl_fp16.safetensors"),
        FLUX_VAE,
    ),
    "zimage": (
        _file(f"{_HUB}/Comfy-Org/z_image/resolve/main/split_files", "diffusion_models", "z_image_bf16.safetensors"),
        QWEN3_4B,
        FLUX_VAE,
    ),
    "zimage:turbo": (
        _file(_Z_IMAGE_TURBO, "diffusion_models", "z_image_turbo_bf16.safetensors"),
        QWEN3_4B,
        FLUX_VAE,
    ),
}


@dataclass(frozen=True)
class Subject:
    """What the templates of one model have of their own.

    Attributes:
        weights: what ``default`` loads, and how; ``{0}`` is the repository.
        about: of rendering it with ``recipe``.
        job: steps and guidance that AI Toolkit's interface writes into a job.
        quantized: how its interface holds transformer and text encoder while it trains.
        recipe: of the templates that do not ask for the trainer's picture.
        negative: a negative prompt, where one counts.
        tokenizer: that ComfyUI's files of it hold a tokenizer.
    """

    weights: str
    about: str
    job: tuple[int, float]
    quantized: tuple[str, str] = ("none", "qfloat8")
    recipe: str = REFERENCE_PIPELINE
    negative: str = "blurry, low quality, text, watermark"
    tokenizer: bool = False


_HELD = "qfloat8"
_CACHE = "from the Hugging Face cache, or downloaded once"
_GUIDED = "Above *guidance_scale* 1 the model is called twice a step, and the negative prompt counts."
_KLEIN = Subject(
    "the base model that AI Toolkit trains, `{0}`, " + _CACHE + ". The text encoder is held in qfloat8.",
    _GUIDED + " klein takes no system prompt.",
    (25, 4.0),
    (_HELD, _HELD),
)
_Z_IMAGE = Subject(
    "`{0}`, " + _CACHE + ".",
    "*guidance_scale* works above 0 here, and there the negative prompt counts. Of 30 steps the last changes nothing. "
    "Z-Image takes no system prompt.",
    (30, 4.0),
    (_HELD, _HELD),
)

SUBJECTS: Mapping[str, Subject] = {
    "lumina2": Subject("`{0}`, " + _CACHE + ".", _GUIDED, (30, 4.0), tokenizer=True),
    "flux2": Subject(
        "`{0}` with the text encoder that AI Toolkit uses, Mistral Small 3.1 (2503), " + _CACHE + ": about 113 GB. "
        "Accept the licence on the repository's page and log in with `hf auth login` first. The text encoder is held "
        "in qfloat8.",
        "*guidance_scale* goes into the model, which is called once a step. The negative prompt is not used.",
        (25, 4.0),
        (_HELD, _HELD),
        negative="",
        tokenizer=True,
    ),
    "flux2_klein_4b": _KLEIN,
    "flux2_klein_9b": _KLEIN,
    "omnigen2": Subject(
        "`{0}`, " + _CACHE + ".",
        _GUIDED + " Pictures above 1024 x 1024 pixels in area are rendered smaller and enlarged, as the model's own "
        "pipeline does.",
        (25, 4.0),
    ),
    "zimage": _Z_IMAGE,
    "zimage:turbo": Subject(
        _Z_IMAGE.weights,
        "Turbo is made for no guidance: that is *guidance_scale* 1 in `trainer preview`, where every step counts. In "
        "`reference pipeline` 1 is guidance already.",
        (9, 1.0),
        recipe=TRAINER_PREVIEW,
        negative="",
    ),
    "zimage:deturbo": Subject(_Z_IMAGE.weights, _Z_IMAGE.about, (25, 3.0), (_HELD, _HELD)),
}
