"""Control images of the models that edit pictures: on their way into the text, and to tokens behind the picture's own.

Source: AI Toolkit extensions_built_in/diffusion_models/krea2/krea2.py and src/text_encoder.py (27a03a91).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ...parts.language_model.qwen2_5_vl import PICTURE
from ...parts.language_model.qwen3_vl_pixels import Sight
from ...parts.qwen_image_vae.autoencoder import constants, posterior
from .edit_recipes import ENCODED_PIXELS, SEEN_PIXELS
from .loop import TOKEN

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

    from ...pictures.picture import Picture
    from ...pictures.sizes import Size
    from .recipes import Krea2Recipe


def in_text(prompt: str, pictures: int) -> str:
    """A prompt with so many pictures in front of it."""
    return "".join(f"Picture {number}: {PICTURE}" for number in range(1, pictures + 1)) + prompt


def seen(references: Sequence[Picture], recipe: Krea2Recipe) -> tuple[Picture, ...]:
    """The control images that the text encoder sees, in order."""
    return (*references[: int(recipe.first_image_twice)], *references)


def sight(recipe: Krea2Recipe) -> Sight:
    """How the text encoder sees control images."""
    return Sight(SEEN_PIXELS, recipe.rounded_sight)


def encoded_size(height: int, width: int, recipe: Krea2Recipe, size: Size) -> tuple[int, int]:
    """Height and width of a control image as the autoencoder gets it, of about its shape and in whole tokens.

    The quotients and roots are in the order of the reference's: neater ones round otherwise here and there.
    """
    most = size.width * size.height if recipe.match_target_res else ENCODED_PIXELS
    tall, wide = float(height), float(width)
    if recipe.match_target_res or height * width > most:
        ratio = height / width
        tall = math.sqrt(most * ratio)
        wide = tall / ratio
    return max(TOKEN, round(tall / TOKEN) * TOKEN), max(TOKEN, round(wide / TOKEN) * TOKEN)


def encode(
    vae: AutoencoderKLQwenImage,
    pictures: Sequence[Picture],
    recipe: Krea2Recipe,
    size: Size,
    dtype: torch.dtype,
    generator: torch.Generator,
    device: str,
) -> tuple[torch.Tensor, ...]:
    """Control images -> their latents [C, h, w] each, in the run's dtype.

    Args:
        vae: on the device.
        pictures: in order.
        recipe: how they are resized.
        size: the picture's.
        dtype: the run's, in which everything is computed.
        generator: for the draws, one after the other.
        device: where.
    """
    latents = []
    for picture in pictures:
        values = picture.pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)[None].to(device, dtype)
        wanted = encoded_size(picture.height, picture.width, recipe, size)
        if wanted != (picture.height, picture.width):
            # no antialiasing
            values = functional.interpolate(values, size=wanted, mode="bilinear")
        # whole, where decoding is in tiles, too
        drawn = posterior(vae, values * 2 - 1, tiled=False).sample(generator)
        mean, std = constants(vae.config, drawn)
        latents.append(((drawn - mean) * (1.0 / std)).to(dtype)[0, :, 0])
    return tuple(latents)
