"""Krea 2's schedule and denoising loop: AI Toolkit's own, which uses no scheduler object.

Latents are float32 in every run; the transformer gets them rounded to the run's dtype, guidance is combined in that
dtype, and only the step widens what came of it.

Source: AI Toolkit extensions_built_in/diffusion_models/krea2/src/pipeline.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...layers.attention import kernel
from ...options import torch_dtype
from .network import ReferenceMemory
from .recipes import Krea2Recipe

if TYPE_CHECKING:
    from ...parts.encoder import Embedding
    from ...pictures.sizes import Size
    from ..model import Denoising

TOKEN = 16  # pixels a side
# tokens of a picture -> mu, between which and beyond which it is linear
_FEWEST, _LEAST_MU = 256, 0.5
_MOST, _MOST_MU = 6400, 1.15


@dataclass(frozen=True)
class Prediction:
    """One step's velocity from image to noise, each [1, C, h, w], in the run's dtype.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None where it was not run.
        guided: what moves the latents.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def mu_of(recipe: Krea2Recipe, size: Size) -> float:
    """The shift of the steps: the larger, the more noise they spend themselves on."""
    if recipe.schedule_mu:
        return recipe.schedule_mu
    slope = (_MOST_MU - _LEAST_MU) / (_MOST - _FEWEST)
    tokens = (size.width // TOKEN) * (size.height // TOKEN)
    return slope * tokens + (_LEAST_MU - slope * _FEWEST)


def sigmas(mu: float, steps: int) -> torch.Tensor:
    """[steps + 1], float32, to 0: e^mu / (e^mu + 1 / t - 1) of t in equal steps from 1.

    In the very order of the reference's roundings: for one of seven sizes the first level is 0.99999994, and not 1.
    """
    factor = math.exp(mu)
    return factor / (factor + (1.0 / torch.linspace(1, 0, steps + 1) - 1.0) ** 1.0)


def guidance_factor(recipe: Krea2Recipe, scale: float) -> float:
    """g' of guidance_scale; 0 is no guidance."""
    return max(0.0, scale - 1.0 if recipe.guidance == "above 1 minus 1" else scale)


def predict(
    transformer: nn.Module,
    latents: torch.Tensor,
    level: float,
    picture: Denoising,
    memory: ReferenceMemory | None = None,
) -> Prediction:
    """Calls the transformer for the prompt, with guidance for the negative prompt too, and combines both.

    Args:
        transformer: on the device.
        latents: [1, C, h, w], float32.
        level: of noise.
        picture: whose they are.
        memory: of isolated control images, the same for all calls of a picture; None where there are none.
    """
    assert isinstance(picture.recipe, Krea2Recipe)
    dtype = torch_dtype(picture.job.dtype)
    time = torch.full((1,), level, dtype=dtype, device=latents.device)

    def velocity(branch: str, text: Embedding) -> torch.Tensor:
        if memory is not None and not memory.pairs:
            # with more tokens than all later ones: nothing of it can be reused by them
            branch = f"{branch}, control images"
        with picture.calling(branch):
            return transformer(
                latents.to(dtype), time, text.embeds, picture.references, isolated=memory is not None, memory=memory
            )

    cond = velocity("prompt", picture.conditioning[0])
    if len(picture.conditioning) == 1:
        return Prediction(cond, None, cond)
    uncond = velocity("negative prompt", picture.conditioning[1])
    factor = guidance_factor(picture.recipe, picture.guidance_scale)
    return Prediction(cond, uncond, cond + factor * (cond - uncond))


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the schedule; float32 latents [1, C, 1, h, w]."""
    latents = picture.latents[:, :, 0]
    # float64 of the float32 values, subtracted as such
    levels = picture.schedule.sigmas.tolist()
    assert isinstance(picture.recipe, Krea2Recipe)
    memory = ReferenceMemory() if picture.recipe.isolated and picture.references else None
    with kernel(transformer, picture.attention):
        for index, (level, following) in enumerate(pairwise(levels)):
            velocity = predict(transformer, latents, level, picture, memory).guided.float()
            clean = latents - level * velocity
            latents = latents + (following - level) * velocity
            picture.on_step(index + 1, clean[:, :, None])
    return latents[:, :, None]
