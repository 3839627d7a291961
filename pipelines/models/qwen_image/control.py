"""Control images of the models that edit pictures: on their way into the text, and to latents behind the picture's own.

Sources: diffusers pipelines/qwenimage/pipeline_qwenimage_edit.py, pipeline_qwenimage_edit_plus.py and
image_processor.py (0.42.1); AI Toolkit qwen_image_edit.py, qwen_image_edit_plus.py and qwen_image_pipelines.py
(27a03a91).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ...errors import InputError
from ...parts.language_model.qwen2_5_vl import PICTURE
from ...parts.language_model.qwen2_5_vl_pixels import Sight, check_seen
from ...parts.qwen_image_vae.autoencoder import encoded, scaled
from .edit_recipes import CONTROL_PIXELS, EDIT_TEMPLATE, MOST_POSITIONS, QwenEditRecipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

    from ...pictures.picture import Picture
    from ...pictures.sizes import Size

_TOKEN = 16  # pixels a side
_STEP = 32  # pixels, to which diffusers rounds the sides
_SQUASH = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


def in_text(prompt: str, pictures: int, recipe: QwenEditRecipe) -> str:
    """The template with so many pictures and a prompt."""
    shown = "".join(f"Picture {number}: {PICTURE}" if recipe.numbered else PICTURE for number in range(1, pictures + 1))
    return EDIT_TEMPLATE.format(shown + prompt)


def seen(references: Sequence[Picture], recipe: QwenEditRecipe) -> tuple[Picture, ...]:
    """The control images that the text encoder sees, in order."""
    return (*references[: int(recipe.first_image_twice)], *references)


def encoded_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a control image as the autoencoder gets it: about a megapixel, of its shape."""
    ratio = width / height
    wide = math.sqrt(CONTROL_PIXELS * ratio)
    return round(wide / _STEP) * _STEP, round(wide / ratio / _STEP) * _STEP


def sight(recipe: QwenEditRecipe, *, negative: bool) -> Sight:
    """How the text encoder sees control images beside the prompt, or beside the negative one."""
    return Sight(recipe.seen_pixels, 2 if negative and recipe.seen_again else 1, recipe.seen_swapped)


def most_rows(references: Sequence[Picture], recipe: QwenEditRecipe, size: Size) -> int:
    """How many rows of text there are positions for: they begin where half of the longest side ends, in tokens."""
    shapes = [(size.width, size.height)]
    shapes += [encoded_size(*_squashed(picture, recipe, size)) for picture in references]
    return MOST_POSITIONS - max(side // _TOKEN // 2 for shape in shapes for side in shape)


def check_shape(width: int, height: int, number: int, recipe: QwenEditRecipe) -> None:
    """Raises InputError where a control image is too long; ``number`` counts from 1."""
    check_seen(width, height, number, sight(recipe, negative=False))
    size = encoded_size(width, height)
    if recipe.squash == "no" and min(size) == 0:
        raise InputError(
            f"Control image {number} is {width} x {height}, too long: of about a megapixel in steps of {_STEP} pixels, "
            f"it would be {size[0]} x {size[1]}. Crop it."
        )


def prepared(image: torch.Tensor, recipe: QwenEditRecipe, size: Size) -> torch.Tensor:
    """A control image as the autoencoder gets it.

    Args:
        image: uint8 [H, W, 3].
        recipe: whether it is first squashed to the picture's size.
        size: the picture's.

    Returns:
        [1, 3, h, w], float32, -1 to 1.
    """
    picture = Image.fromarray(image.numpy())
    if recipe.squash != "no" and picture.size != (size.width, size.height):
        picture = picture.resize((size.width, size.height), _SQUASH[recipe.squash])
    picture = picture.resize(encoded_size(*picture.size), Image.Resampling.LANCZOS)
    values = np.asarray(picture, dtype=np.float32)[None] / 255.0
    # the channels stay last in memory: convolutions round otherwise where they come first
    return 2.0 * torch.from_numpy(values.transpose(0, 3, 1, 2)) - 1.0


def encode(
    vae: AutoencoderKLQwenImage,
    pictures: Sequence[Picture],
    recipe: QwenEditRecipe,
    size: Size,
    dtype: torch.dtype,
    device: str,
    *,
    tiled: bool,
) -> tuple[torch.Tensor, ...]:
    """Control images -> their latents [1, C, 1, h, w] each, the mean: nothing is drawn.

    Args:
        vae: on the device.
        pictures: in order.
        recipe: how they are resized.
        size: the picture's.
        dtype: the run's.
        device: where.
        tiled: whether each is encoded in tiles.
    """
    latents = []
    for picture in pictures:
        pixels = prepared(picture.pixels, recipe, size).to(device).to(dtype)
        latents.append(scaled(encoded(vae, pixels, tiled=tiled), vae.config).to(dtype))
    return tuple(latents)


def _squashed(picture: Picture, recipe: QwenEditRecipe, size: Size) -> tuple[int, int]:
    """Width and height of a control image before it is brought to a megapixel."""
    return (picture.width, picture.height) if recipe.squash == "no" else (size.width, size.height)
