"""The files that people have of each model, with their addresses; and what a template says of each model.

Addresses are those that ComfyUI's own templates have. Lumina's three files are those that sd-scripts' documentation and
diffusers' tests name, and the adapter is the one of AI Toolkit's interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...pipelines.models.recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW
from .drawing import ModelFile

_HUB = "https://huggingface.co"
_Z_IMAGE_TURBO = f"{_HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"
_FLUX2 = f"{_HUB}/Comfy-Org/flux2-dev/resolve/main/split_files"
_LUMINA = f"{_HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main"
_OMNIGEN2 = f"{_HUB}/Comfy-Org/Omnigen2_ComfyUI_repackaged/resolve/main/split_files"
_QWEN_IMAGE = f"{_HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
_QWEN_EDIT = f"{_HUB}/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"
_KREA2 = f"{_HUB}/Comfy-Org/Krea-2/resolve/main"


def _file(root: str, folder: str, name: str) -> ModelFile:
    return ModelFile(name, f"{root}/{folder}/{name}", folder)


QWEN3_4B = _file(_Z_IMAGE_TURBO, "text_encoders", "qwen_3_4b.safetensors")
FLUX_VAE = _file(f"{_LUMINA}/split_files", "vae", "ae.safetensors")
FLUX2_VAE = _file(_FLUX2, "vae", "flux2-vae.safetensors")
GEMMA2 = _file(f"{_LUMINA}/split_files", "text_encoders", "gemma_2_2b_fp16.safetensors")
QWEN2_5_VL_7B = _file(_QWEN_IMAGE, "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
QWEN_IMAGE_VAE = _file(_QWEN_IMAGE, "vae", "qwen_image_vae.safetensors")
LUMINA_ALL_IN_ONE = ModelFile("lumina_2.safetensors", f"{_LUMINA}/all_in_one/lumina_2.safetensors", "checkpoints")


def _adapter(repository: str, name: str) -> ModelFile:
    return ModelFile(name, f"{_HUB}/ostris/{repository}/resolve/main/{name}", "loras")


_KREA2_ADAPTER = _adapter("krea2_turbo_training_adapter", "krea2_turbo_training_adapter_v1.safetensors")
# model -> the adapter that AI Toolkit's interface trains it with
TRAINING_ADAPTERS: Mapping[str, ModelFile] = {
    "krea2:turbo": _KREA2_ADAPTER,
    "krea2:o_edit_turbo": _KREA2_ADAPTER,
    "zimage:turbo": _adapter("zimage_turbo_training_adapter", "zimage_turbo_training_adapter_v2.safetensors"),
}
RECOVERY_ADAPTER = _adapter("accuracy_recovery_adapters", "qwen_image_torchao_uint3.safetensors")

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
    "qwen_image": (
        _file(_QWEN_IMAGE, "diffusion_models", "qwen_image_fp8_e4m3fn.safetensors"),
        QWEN2_5_VL_7B,
        QWEN_IMAGE_VAE,
    ),
    "qwen_image:2512": (
        _file(_QWEN_IMAGE, "diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
        QWEN2_5_VL_7B,
        QWEN_IMAGE_VAE,
    ),
    "qwen_image_edit": (
        _file(_QWEN_EDIT, "diffusion_models", "qwen_image_edit_fp8_e4m3fn.safetensors"),
        QWEN2_5_VL_7B,
        QWEN_IMAGE_VAE,
    ),
    "qwen_image_edit_plus": (
        _file(_QWEN_EDIT, "diffusion_models", "qwen_image_edit_2509_fp8_e4m3fn.safetensors"),
        QWEN2_5_VL_7B,
        QWEN_IMAGE_VAE,
    ),
    "qwen_image_edit_plus:2511": (
        _file(_QWEN_EDIT, "diffusion_models", "qwen_image_edit_2511_bf16.safetensors"),
        QWEN2_5_VL_7B,
        QWEN_IMAGE_VAE,
    ),
    "krea2:turbo": (
        _file(_KREA2, "diffusion_models", "krea2_turbo_fp8_scaled.safetensors"),
        _file(_KREA2, "text_encoders", "qwen3vl_4b_fp8_scaled.safetensors"),
        _file(_KREA2, "vae", "qwen_image_vae.safetensors"),
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
        rounded: what is said of ComfyUI's files that are not the trainer's weights; empty where they are.
        tiled: that its interface decodes in tiles.
        edits: that it renders nothing without a picture to edit.
        control: what becomes of a picture to edit.
    """

    weights: str
    about: str
    job: tuple[int, float]
    quantized: tuple[str, str] = ("none", "qfloat8")
    recipe: str = REFERENCE_PIPELINE
    negative: str = "blurry, low quality, text, watermark"
    tokenizer: bool = False
    rounded: str = ""
    tiled: bool = False
    edits: bool = False
    control: str = ""


_HELD = "qfloat8"
_SIZE = " The result's size is the sampler's *width* and *height*."
_KEPT = (
    "It goes in as it is; one above 1024 x 1024 pixels is scaled down to that area." + _SIZE + f" Only "
    f"`{TRAINER_PREVIEW}` takes control images."
)
_SQUASHED = "It is squashed to the sampler's *width* and *height*, whatever its shape: give both the same proportions."
_SEEN = " The text encoder sees it too."
_CACHE = "from the Hugging Face cache, or downloaded once"
_GUIDED = "Above *guidance_scale* 1 the model is called twice a step, and the negative prompt counts."
_KLEIN = Subject(
    "the base model that AI Toolkit trains, `{0}`, " + _CACHE + ". The text encoder is held in qfloat8.",
    _GUIDED + " klein takes no system prompt.",
    (25, 4.0),
    (_HELD, _HELD),
    control=_KEPT,
)
_Z_IMAGE = Subject(
    "`{0}`, " + _CACHE + ".",
    "*guidance_scale* works above 0 here, and there the negative prompt counts. Of 30 steps the last changes nothing. "
    "Z-Image takes no system prompt.",
    (30, 4.0),
    (_HELD, _HELD),
)

_FLOAT8 = "This is another picture than the trainer's: {0} rounded to float8."
_QWEN = Subject(
    "`{0}`, " + _CACHE + ": about 58 GB.",
    _GUIDED + " It takes no system prompt.",
    (30, 4.0),
    (_HELD, _HELD),
    rounded=_FLOAT8.format("the weights are"),
    tiled=True,
)
_QWEN_EDITS = replace(
    _QWEN,
    about=_GUIDED + " The text encoder sees the picture too, with the negative prompt as well.",
    recipe=TRAINER_PREVIEW,
    negative="",
    edits=True,
    control=_SQUASHED + _SEEN,
)
_QWEN_EDITS_SEVERAL = replace(
    _QWEN_EDITS, control="It is scaled to about a megapixel of its own shape." + _SIZE + _SEEN
)
_KREA = Subject(
    "`{0}`, its text encoder `Qwen/Qwen3-VL-4B-Instruct` and the autoencoder of `Qwen/Qwen-Image`, " + _CACHE + ": "
    "about 36 GB. Accept the licence on the repository's page and log in with `hf auth login` first.",
    _GUIDED + " The model uses *guidance_scale* less 1. It takes no system prompt.",
    (30, 4.0),
    (_HELD, _HELD),
    rounded=_FLOAT8.format("the weights are"),
    tiled=True,
)
_KREA_TURBO = replace(
    _KREA, about="Turbo is made for no guidance: that is *guidance_scale* 1.", job=(9, 1.0), negative=""
)
_KREA_EDITS = replace(
    _KREA, about=_KREA.about + " LoRAs of AI Toolkit's edit training need it.", recipe=TRAINER_PREVIEW, negative="",
    edits=True, control="It is scaled to as many pixels as the result has, in its own shape." + _SIZE + _SEEN,
)  # fmt: skip

SUBJECTS: Mapping[str, Subject] = {
    "krea2": _KREA,
    "krea2:turbo": _KREA_TURBO,
    "krea2:o_edit": _KREA_EDITS,
    "krea2:o_edit_turbo": replace(_KREA_EDITS, about=_KREA_TURBO.about, job=(8, 1.0)),
    "qwen_image": _QWEN,
    "qwen_image:2512": _QWEN,
    "qwen_image_edit": _QWEN_EDITS,
    "qwen_image_edit_plus": _QWEN_EDITS_SEVERAL,
    "qwen_image_edit_plus:2511": replace(_QWEN_EDITS_SEVERAL, rounded=_FLOAT8.format("the text encoder is")),
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
        rounded=_FLOAT8.format("the weights are")[:-1] + ", and the text encoder need not be Mistral Small 3.1 (2503), "
        "which AI Toolkit uses.",
        control=_KEPT,
    ),
    "flux2_klein_4b": _KLEIN,
    "flux2_klein_9b": _KLEIN,
    "omnigen2": Subject(
        "`{0}`, " + _CACHE + ".",
        _GUIDED + " Pictures above 1024 x 1024 pixels in area are rendered smaller and enlarged, as the model's own "
        "pipeline does.",
        (25, 4.0),
        control=f"{_SQUASHED} To keep its own shape, choose `{REFERENCE_PIPELINE}`.",
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
