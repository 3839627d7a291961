"""Qwen-Image's code behind the shared run: its parts, its texts, its schedule, and from latents to pixels."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKLQwenImage
from diffusers import __version__ as diffusers_version

from ...errors import FileError, InputError
from ...options import torch_dtype
from ...parts.encoder import Text
from ...parts.flux_vae.autoencoder import denormalised
from ...parts.language_model.qwen2_5_vl import SeeingLanguageModel, SeeingSettings
from ...parts.language_model.qwen2_5_vl_files import QWEN2_5_VL_SEEING
from ...parts.part import Network
from ...parts.qwen_image_vae.autoencoder import DOWNSCALE, QwenImageVae, constants, decoded
from ...pictures.pixels import to_pixels
from ..model import Model
from ..option import VAE_TILING
from ..schedule import Schedule
from . import control, loop
from .edit_recipes import EDIT_TEMPLATE_TOKENS, QwenEditRecipe
from .files import LAYERED, ZERO_TIME_MARKER
from .recipes import (
    ENCODED_LENGTH,
    LAST_SIGMA,
    TEMPLATE,
    TEMPLATE_TOKENS,
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
        settings = TemplateSettings(cast_rope, dropped=TEMPLATE_TOKENS, kept=recipe.text_length)
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
                **self._told_of_texts(texts[0]),
            },
            "decoded": "in tiles" if tiled(job) else "whole",
        }

    def _told_of_texts(self, text: Text) -> dict[str, Any]:
        return {"text_length": text.settings.kept}


class QwenImageEdit(QwenImage):
    """Qwen-Image-Edit, -2509 and -2511: control images in the text, and as tokens behind the picture's own."""

    def texts(self, job: Job) -> list[Text]:
        recipe = edit_recipe_of(job)
        pictures = control.seen(job.references, recipe)
        texts = [job.typed.prompt]
        if job.guidance_scale > recipe.guided_above:
            texts.append(job.typed.negative_prompt)
        return [
            Text(
                control.in_text(text, len(pictures), recipe),
                # of any size, so that one embedding serves every one
                EDIT_TEMPLATE_TOKENS + recipe.text_length,
                self._settings(job, recipe, negative=index > 0),
                pictures=pictures,
            )
            for index, text in enumerate(texts)
        ]

    def _settings(self, job: Job, recipe: QwenEditRecipe, *, negative: bool) -> SeeingSettings:
        return SeeingSettings(
            recipe.cast_rope and job.dtype != "float32",
            dropped=EDIT_TEMPLATE_TOKENS,
            sight=control.sight(recipe, negative=negative),
            grid_positions=recipe.grid_positions,
        )

    def check_references(self, job: Job) -> None:
        if not job.references:
            count = "one" if job.recipe.control_images == 1 else "one to three"
            raise InputError(
                f"{self.facts.title} edits a picture, and none is connected. Connect {count} to AITK Control Images, "
                "and that to the sampler's control."
            )
        recipe = edit_recipe_of(job)
        for number, picture in enumerate(job.references, 1):
            control.check_shape(picture.width, picture.height, number, recipe)

    def encode_references(
        self, autoencoder: nn.Module, job: Job, generator: torch.Generator, device: str
    ) -> tuple[torch.Tensor, ...]:
        assert isinstance(autoencoder, AutoencoderKLQwenImage)
        dtype = torch_dtype(job.dtype)
        return control.encode(
            autoencoder, job.references, edit_recipe_of(job), job.size, dtype, device, tiled=tiled(job)
        )

    def reference_settings(self, job: Job) -> Hashable:
        squash = edit_recipe_of(job).squash
        return squash, None if squash == "no" else (job.size.width, job.size.height), tiled(job)

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        most = control.most_rows(picture.job.references, edit_recipe_of(picture.job), picture.job.size)
        rows = max(text.embeds.shape[1] for text in picture.conditioning)
        if rows > most:
            raise InputError(
                f"The prompt and the control images in it are {rows} tokens, and {self.facts.title} has positions for "
                f"{most} beside a picture of this size. Shorten the prompt, or connect fewer control images."
            )
        return super().denoise(denoisers, picture)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe = edit_recipe_of(job)
        references = {
            "first": f"squashed to the picture's size ({recipe.squash})" if recipe.squash != "no" else "own shape",
            "encoded": "in tiles" if tiled(job) else "whole",
            "latents": "the mean",
        }
        return {**super().describe(job, texts), "references": references}

    def _told_of_texts(self, text: Text) -> dict[str, Any]:
        settings = text.settings
        assert isinstance(settings, SeeingSettings)
        return {
            "sees": len(text.pictures),
            "pixels_of_each": settings.sight.area,
            "values": "divided by 255 twice, as in AI Toolkit",
            "positions": "in a grid" if settings.grid_positions else "one after the other",
        }


def model_of(facts: ModelFacts) -> QwenImage:
    """The code of one of this package's models: those that take control images have another text encoder."""
    if any(recipe.control_images for recipe in facts.recipes.values()):
        return QwenImageEdit(facts, SeeingLanguageModel(QWEN2_5_VL_SEEING, needs=needs_encoder(facts)))
    return QwenImage(facts, TextEncoder(needs_encoder(facts)))


def needs_encoder(facts: ModelFacts) -> str:
    return f"{facts.title} needs Qwen2.5-VL 7B."


def tiled(job: Job) -> bool:
    """Whether the autoencoder works in tiles."""
    return recipe_of(job).tiled_by_low_vram and bool(job.options.own.get(VAE_TILING.name, VAE_TILING.default))


def recipe_of(job: Job) -> QwenImageRecipe:
    assert isinstance(job.recipe, QwenImageRecipe)
    return job.recipe


def edit_recipe_of(job: Job) -> QwenEditRecipe:
    assert isinstance(job.recipe, QwenEditRecipe)
    return job.recipe


def _transformer_class(facts: ModelFacts) -> type[nn.Module]:
    """diffusers' class, which has what these models need since 0.37: texts without a mask, and ``zero_cond_t``."""
    from diffusers import QwenImageTransformer2DModel

    if "zero_cond_t" not in inspect.signature(QwenImageTransformer2DModel).parameters:
        raise InputError(f"{facts.title} needs diffusers 0.37.0 or newer; installed is {diffusers_version}. Update it.")
    return QwenImageTransformer2DModel
