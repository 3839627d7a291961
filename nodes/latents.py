"""Pictures to latents and back with a pipeline's own autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from .host import current_host
from .observer import NodeObserver
from .sampler import engine
from .save_image import check_pictures
from .shared import CATEGORY, check_pipeline, check_texts, latent_samples, recipe_names, search_words

if TYPE_CHECKING:
    import torch

    from ..pipelines.handle import PipelineHandle

_IMPORTING = "importing PyTorch and diffusers"
_PIPELINE = ("AITK_PIPELINE", {"tooltip": "From Load AITK Model: whose VAE. Its LoRAs change nothing here."})


class AITKEncodeImage:
    """Pictures to the sampler's ``latent``."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "One picture, or a batch of one size: a batch of latents."}),
                "pipeline": _PIPELINE,
                "recipe": _recipe("That of the sampler behind it: its sizes. Of another size, the middle is taken."),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("For the sampler's latent, with denoise below 1. ComfyUI's own latent nodes take it, too.",)
    FUNCTION = "encode"
    CATEGORY = CATEGORY
    DESCRIPTION = "Makes a latent of a picture with the pipeline's own VAE, at a size that the recipe renders."
    SEARCH_ALIASES = search_words("vae encode", "encode image", "image to latent", "img2img", "image to image", "vae")

    def encode(
        self, images: torch.Tensor, pipeline: PipelineHandle, recipe: str, unique_id: str | None = None
    ) -> dict[str, Any]:
        check_pipeline(pipeline)
        check_texts({"recipe": recipe})
        with NodeObserver(current_host(), unique_id, _IMPORTING) as observer:
            from ..pipelines.run.latents import encode_images

            check_pictures(images)
            if not bool(images.isfinite().all()):
                raise InputError("images holds NaN or Inf: what made it failed.")
            found = encode_images(engine(), pipeline, recipe, images, observer)
        closing = "\n".join(found.notes) or f"{images.shape[2]} x {images.shape[1]}"
        current_host().show_text(unique_id, closing)
        return {"ui": {"text": [closing]}, "result": ({"samples": found.latent},)}


class AITKDecodeLatent:
    """The sampler's ``latent`` to pictures."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "latent": ("LATENT", {"tooltip": "From AITK Sampler, or any latent of this model."}),
                "pipeline": _PIPELINE,
                "recipe": _recipe("That of the sampler before it: they round differently, in the last bits."),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures.",)
    FUNCTION = "decode"
    CATEGORY = CATEGORY
    DESCRIPTION = "Makes pictures of latents with the pipeline's own VAE, as the sampler makes its own."
    SEARCH_ALIASES = search_words("vae decode", "decode latent", "latent to image", "vae")

    def decode(
        self, latent: dict[str, Any], pipeline: PipelineHandle, recipe: str, unique_id: str | None = None
    ) -> tuple[torch.Tensor]:
        check_pipeline(pipeline)
        check_texts({"recipe": recipe})
        with NodeObserver(current_host(), unique_id, _IMPORTING) as observer:
            from ..pipelines.run.latents import decode_latents

            pictures = decode_latents(engine(), pipeline, recipe, latent_samples(latent), observer)
        current_host().show_text(unique_id, f"{pictures.shape[2]} x {pictures.shape[1]}")
        return (pictures,)


def _recipe(tooltip: str) -> tuple[list[str], dict[str, Any]]:
    names = recipe_names()
    return names, {"default": names[0], "tooltip": tooltip}
