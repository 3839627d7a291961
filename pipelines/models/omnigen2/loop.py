"""OmniGen2's denoising loop: the arithmetic, and the order of its roundings, of AI Toolkit's copy of the pipeline.

Written out here, and not called, so that a run can start from a latent, be interrupted before each model call, and show
previews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ...layers.attention import kernel
from .recipes import OmniGen2Recipe
from .schedule import OmniGen2Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...parts.encoder import Embedding
    from ..model import Denoising


@dataclass(frozen=True)
class Prediction:
    """One step's model output, each [1, C, h, w]: velocity from noise to image.

    Attributes:
        cond: for the prompt, with the reference images.
        negative: for the negative prompt, with them too; None where it was not run.
        bare: for the negative prompt without them; None where it was not run.
        guided: what moves the latents.
    """

    cond: torch.Tensor
    negative: torch.Tensor | None
    bare: torch.Tensor | None
    guided: torch.Tensor


def predict(transformer: nn.Module, latents: torch.Tensor, time: torch.Tensor, picture: Denoising) -> Prediction:
    """Calls the transformer for the prompt, and with guidance for the negative prompt; combines them.

    The reference images are part of both calls: v_n + g * (v_c - v_n). A guidance by the images above 1 adds a third
    call, for the negative prompt without images: v_b + i * (v_n - v_b) + g * (v_c - v_n).
    """
    assert isinstance(picture.recipe, OmniGen2Recipe)
    # rounded before the model's sine and cosine
    time = time.reshape(1).to(latents.dtype)

    def velocity(branch: str, text: Embedding, references: Sequence[torch.Tensor]) -> torch.Tensor:
        with picture.calling(branch):
            return transformer(latents, time, text.embeds, references)

    cond = velocity("prompt", picture.conditioning[0], picture.references)
    if len(picture.conditioning) == 1:
        return Prediction(cond, None, None, cond)
    negative = velocity("negative prompt", picture.conditioning[1], picture.references)
    image_guidance = picture.recipe.image_guidance_scale if picture.references else 1.0
    if image_guidance <= 1:
        return Prediction(cond, negative, None, negative + picture.guidance_scale * (cond - negative))
    bare = velocity("without images", picture.conditioning[1], ())
    guided = bare + image_guidance * (negative - bare) + picture.guidance_scale * (cond - negative)
    return Prediction(cond, negative, bare, guided)


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the times of the schedule; returns the final latents in the dtype of the first."""
    assert isinstance(picture.schedule, OmniGen2Schedule)
    latents = picture.latents
    with kernel(transformer, picture.attention):
        for index, (time, following) in enumerate(pairwise(picture.schedule.times)):
            velocity = predict(transformer, latents, time, picture).guided
            state = latents.float()
            clean = state + (1 - time) * velocity
            # the times are 0-dim tensors: in bfloat16 the product is rounded to it before the float32 addition
            latents = (state + (following - time) * velocity).to(velocity.dtype)
            picture.on_step(index + 1, clean)
    return latents
