"""Qwen-Image's code behind the shared run: its parts, its texts, its schedule, and from latents to pixels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKLQwenImage
from diffusers import __version__ as diffusers_version

from ...errors import FileError, InputError
from ...parts.encoder import Text
from ...parts.flux_vae.autoencoder import denormalised
from ...parts.part import Network
from ...parts.qwen_image_vae.autoencoder import DOWNSCALE, QwenImageVae, constants, decoded
from ...pictures.pixels import to_pixels
from ..model import Model
from ..option import VAE_TILING
from ..schedule import Schedule
from . import loop
from .files import LAYERED, ZERO_TIME_MARKER
from .recipes import (
    ENCODED_LENGTH,
    LAST_SIGMA,
    TEMPLATE,
    TEMPLATE_TOKENS,
    TEXT_LENGTH,
    QwenImageRecipe,
)
from .text import TemplateSettings, TextEncoder
from .tokens import PATCH

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...layers.cached_blocks import Returned
    from ...parts.encoder import Encoder
    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ...weights.source import Source
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

# pixels; the tables of positions go further, so that only ComfyUI's own widgets end somewhere
_LARGEST_SIDE = 16384
_ACTIVATIONS = 1 << 31  # bytes; of the transformer


class Transformer(Network):
    """diffusers' transformer."""

    surplus = (ZERO_TIME_MARKER,)
    # a text has as many tokens as its words
    uneven = True

    def __init__(self, facts: ModelFacts) -> None:
        super().__init__("transformer", _transformer_class(facts), blocks=("transformer_blocks",))

    def check_kind(self, source: Source) -> None:
        super().check_kind(source)
        if source.config().get("use_additional_t_cond"):
            raise FileError(f"{source.name!r} cannot be used: {LAYERED}. Choose another checkpoint.")

    def returned(self, block: nn.Module) -> Returned:
        return "text, image"

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        return _ACTIVATIONS


class QwenImage(Model):
    """See :class:`..model.Model`; text to image, and what the family's other models have in common with it.

    Args:
        facts: the catalogue's entry.
        encoder: the part ``text_encoder``.
    """

    def __init__(self, facts: ModelFacts, encoder: Encoder) -> None:
        self._vae = QwenImageVae(f"{facts.title} needs Qwen-Image's, qwen_image_vae.safetensors.")
        super().__init__(facts, (Transformer(facts), encoder, self._vae))

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        config = transformer.config()
        given, wanted = source.config().get("hidden_size"), config.get("joint_attention_dim")
        if given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                f"{transformer.name!r} takes {wanted}. {needs_encoder(self.facts)}"
            )
        self._vae.check_channels(checkpoint, "transformer", config.get("in_channels", 0) // (PATCH * PATCH))

    def largest_side(self, checkpoint: Checkpoint) -> int:
        return _LARGEST_SIDE

    def texts(self, job: Job) -> list[Text]:
        recipe = recipe_of(job)
        # in float32 there is nothing to round: one embedding serves every recipe
        cast_rope = recipe.cast_rope and job.dtype != "float32"
        settings = TemplateSettings(cast_rope, dropped=TEMPLATE_TOKENS, kept=TEXT_LENGTH)
        prompts = [job.typed.prompt]
        if job.guidance_scale > recipe.guided_above:
            prompts.append(job.typed.negative_prompt)
        return [Text(TEMPLATE.format(prompt), TEMPLATE_TOKENS + ENCODED_LENGTH, settings) for prompt in prompts]

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return (1, self.facts.latent.channels, 1, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def schedule(self, job: Job, steps: int) -> Schedule:
        if steps == 1:
            raise InputError(
                f"{self.facts.title} renders nothing in 1 step: its schedule moves the last noise level to "
                f"{LAST_SIGMA} by the distance of the first one from it, which is 0 then. AI Toolkit gives NaN. Choose "
                "2 steps or more."
            )
        *_, height, width = self.latent_shape(job.size)
        return Schedule(loop.sigmas(steps, (height // PATCH) * (width // PATCH)))

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, AutoencoderKLQwenImage)
        given = latents.to(autoencoder.dtype)
        mean, std = constants(autoencoder.config, given)
        # divided by a rounded reciprocal: in bfloat16 the product with the deviation differs in 15 % of the values
        image = decoded(autoencoder, given / (1.0 / std) + mean, tiled=tiled(job))
        return to_pixels(denormalised(image), autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe, settings = recipe_of(job), texts[0].settings
        guidance: dict[str, Any] | None = None
        if len(texts) > 1:
            guidance = {"method": "classifier-free", "length_of_the_prompts_prediction": recipe.cfg_norm}
        return {
            "schedule": {
                "name": "flow-match Euler",
                "of": "diffusers",
                "shift": "by the size",
                "last_sigma": LAST_SIGMA,
            },
            "guidance": guidance,
            "text_encoder": {
                "name": "Qwen2.5-VL",
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": settings.kept,
            },
            "decoded": "in tiles" if tiled(job) else "whole",
        }


def model_of(facts: ModelFacts) -> QwenImage:
    return QwenImage(facts, TextEncoder(needs_encoder(facts)))


def needs_encoder(facts: ModelFacts) -> str:
    return f"{facts.title} needs Qwen2.5-VL 7B."


def tiled(job: Job) -> bool:
    """Whether the autoencoder works in tiles."""
    return recipe_of(job).tiled_by_low_vram and bool(job.options.own.get(VAE_TILING.name, VAE_TILING.default))


def recipe_of(job: Job) -> QwenImageRecipe:
    assert isinstance(job.recipe, QwenImageRecipe)
    return job.recipe


def _transformer_class(facts: ModelFacts) -> type[nn.Module]:
    """diffusers' class, which has what these models need since 0.37: texts without a mask, and ``zero_cond_t``."""
    from diffusers import QwenImageTransformer2DModel

    if "zero_cond_t" not in inspect.signature(QwenImageTransformer2DModel).parameters:
        raise InputError(f"{facts.title} needs diffusers 0.37.0 or newer; installed is {diffusers_version}. Update it.")
    return QwenImageTransformer2DModel
