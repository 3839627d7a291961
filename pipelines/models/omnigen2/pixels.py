"""OmniGen2's sizes, and its reference images on their way to latents.

Pictures above one megapixel are rendered smaller and enlarged afterwards. The products and quotients below are in the
order of the reference's, in double precision: at 1040 x 1040 a neater formula gives 1024, and this one 1008.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ...errors import InputError
from ...parts.flux_vae.autoencoder import decoded, scaled
from .recipes import MULTIPLE, OmniGen2Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from ...pictures.sizes import Size

_MAX_PIXELS = 1024 * 1024
_MAX_REFERENCE_SIDE = 1024


def rendered(size: Size) -> tuple[int, int]:
    """Width and height of what is denoised and decoded for a picture of this size."""
    ratio = min((_MAX_PIXELS / (size.height * size.width)) ** 0.5, 1.0)
    return _floored(size.width, ratio), _floored(size.height, ratio)


def check_size(width: int, height: int, number: int) -> None:
    """Raises InputError where nothing is left of a reference image's side; ``number`` counts from 1."""
    seen = _seen(width, height)
    if min(seen) == 0:
        raise InputError(
            f"Control image {number} is {width} x {height}; OmniGen2 sees it at {seen[0]} x {seen[1]}, in steps of "
            f"{MULTIPLE} and at most {_MAX_REFERENCE_SIDE} a side. Crop or enlarge it."
        )


def prepare(image: torch.Tensor, recipe: OmniGen2Recipe, size: Size) -> torch.Tensor:
    """A reference image as the autoencoder gets it.

    Args:
        image: uint8 [H, W, 3].
        recipe: whether it is first squashed to the picture's size.
        size: the picture's, as it is saved.

    Returns:
        [1, 3, h, w], float32, -1 to 1; h and w are multiples of 16.
    """
    picture = Image.fromarray(image.numpy())
    if recipe.squash_references and picture.size != (size.width, size.height):
        picture = picture.resize((size.width, size.height), Image.Resampling.BILINEAR)
    picture = picture.resize(_seen(*picture.size), Image.Resampling.LANCZOS)
    values = np.asarray(picture, dtype=np.float32)[None] / 255.0
    # the channels stay last in memory: convolutions round otherwise where they come first
    return 2.0 * torch.from_numpy(values.transpose(0, 3, 1, 2)) - 1.0


def encode(
    vae: AutoencoderKL,
    images: Sequence[torch.Tensor],
    recipe: OmniGen2Recipe,
    size: Size,
    dtype: torch.dtype,
    generator: torch.Generator,
    device: str,
) -> tuple[torch.Tensor, ...]:
    """Reference images -> their latents.

    Args:
        vae: on the device.
        images: uint8 [H, W, 3], CPU, in the order in which they are numbered.
        recipe: how they are resized, and how the latents come from the autoencoder's distribution.
        size: the picture's, as it is saved.
        dtype: the run's.
        generator: for the draws, one after the other; not used where the recipe takes the mean.
        device: where the latents are to lie.

    Returns:
        [C, h, w] each.
    """
    latents = []
    for image in images:
        pixels = prepare(image, recipe, size).to(device).to(dtype)
        posterior = vae.encode(pixels, return_dict=False)[0]
        drawn = posterior.mode() if recipe.posterior == "mean" else posterior.sample(generator)
        latents.append(scaled(drawn, vae.config).to(dtype)[0])
    return tuple(latents)


def decode(vae: AutoencoderKL, latents: torch.Tensor, size: Size) -> torch.Tensor:
    """[1, C, h, w] -> [1, 3, height, width] of the size asked for, nominal range -1 to 1, in the latents' dtype."""
    # in the run's dtype; where nothing is resized the values stay as they are
    return torch.nn.functional.interpolate(decoded(vae, latents), size=(size.height, size.width), mode="bilinear")


def _seen(width: int, height: int) -> tuple[int, int]:
    """The size at which the model sees a reference image."""
    side_ratio = _MAX_REFERENCE_SIDE / height if height > width else _MAX_REFERENCE_SIDE / width
    ratio = min((_MAX_PIXELS / (height * width)) ** 0.5, side_ratio, 1.0)
    return _floored(width, ratio), _floored(height, ratio)


def _floored(side: int, ratio: float) -> int:
    return int(side * ratio) // MULTIPLE * MULTIPLE
