"""Z-Image's schedules and denoising loop: the arithmetic, and the order of its roundings, of diffusers' pipeline.

Latents are float32 in every run; the transformer gets them rounded to the run's dtype, and what it gives is widened
before anything is done with it. Written out here, and not called, so that a run can start from a latent, be interrupted
before each model call, and show previews.

Source: diffusers pipelines/z_image/pipeline_z_image.py and schedulers/scheduling_flow_match_euler_discrete.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import nn

from ...layers.attention import kernel
from ...options import torch_dtype
from .recipes import SHIFT, ZImageRecipe

if TYPE_CHECKING:
    from ...parts.encoder import Embedding
    from ..model import Denoising

T = TypeVar("T", np.ndarray, torch.Tensor)
_TRAIN_TIMESTEPS = 1000  # scheduler_config.json: num_train_timesteps


@dataclass(frozen=True)
class Prediction:
    """One step's model output, each [1, C, h, w], float32: velocity from noise to image.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None where it was not run.
        guided: what moves the latents.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def sigmas(recipe: ZImageRecipe, steps: int) -> torch.Tensor:
    """[steps + 1], float32: s = 3 x / (1 + 2 x), then 0."""
    if recipe.idle_last_step:
        # float64 until the end, and down to 0: the last step goes from 0 to 0
        x = np.linspace(_TRAIN_TIMESTEPS, 0.0, steps) / _TRAIN_TIMESTEPS
        values = torch.from_numpy(_shifted(x)).to(torch.float32)
    else:
        # float32 throughout: shifting in float64 and casting differs in the last place here and there
        values = _shifted(torch.linspace(1.0, 1.0 / steps, steps))
    return torch.cat([values, torch.zeros(1)])


def _shifted(x: T) -> T:
    return SHIFT * x / (1 + (SHIFT - 1) * x)


def guidance_factor(recipe: ZImageRecipe, scale: float) -> float:
    """g' of guidance_scale; 0 is no guidance."""
    if recipe.guidance == "above 1 minus 1":
        return max(0.0, scale - 1.0)
    return scale if scale > recipe.guided_above else 0.0


def model_time(sigma: torch.Tensor) -> torch.Tensor:
    """What the transformer is told: 0 for noise, 1 for the image, [1], float32; by way of the timestep."""
    return ((_TRAIN_TIMESTEPS - sigma * _TRAIN_TIMESTEPS) / _TRAIN_TIMESTEPS).reshape(1)


def predict(transformer: nn.Module, latents: torch.Tensor, time: torch.Tensor, picture: Denoising) -> Prediction:
    """Calls the transformer for the prompt, with guidance for the negative prompt too, and combines both."""
    model_input = latents.to(torch_dtype(picture.job.dtype))[0][:, None]  # a frame: [C, 1, h, w]
    texts = [_rows(text) for text in picture.conditioning]

    def velocities(branch: str, texts: list[torch.Tensor]) -> list[torch.Tensor]:
        count = len(texts)
        with picture.calling(branch):
            found = transformer([model_input] * count, time.repeat(count), texts, return_dict=False)[0]
        # [C, 1, h, w] each
        return [one.float().transpose(0, 1) for one in found]

    if len(texts) == 1:
        (cond,) = velocities("prompt", texts)
        return Prediction(cond, None, cond)
    if picture.attention == "default":
        # one batch, as the pipeline has it: padded to the longer text, other kernels than two calls
        cond, uncond = velocities("both prompts", texts)
    else:
        # these kernels take no mask, which texts of two lengths need
        (cond,), (uncond,) = velocities("prompt", texts[:1]), velocities("negative prompt", texts[1:])
    factor = guidance_factor(recipe_of(picture), picture.guidance_scale)
    return Prediction(cond, uncond, cond + factor * (cond - uncond))


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the schedule; float32 latents."""
    latents = picture.latents
    with kernel(transformer, picture.attention):
        for index, (sigma, following) in enumerate(pairwise(picture.schedule.sigmas)):
            if sigma > 0:
                # the scheduler's sign: from image to noise
                velocity = -predict(transformer, latents, model_time(sigma), picture).guided
                clean = latents - sigma * velocity
                latents = latents + (following - sigma) * velocity
            else:
                # the step that stands at the end already: its call would change nothing
                clean = latents
            picture.on_step(index + 1, clean)
    return latents


def _rows(text: Embedding) -> torch.Tensor:
    """[tokens, D]: without the padding."""
    return text.embeds[0][text.mask[0].bool()]


def recipe_of(picture: Denoising) -> ZImageRecipe:
    assert isinstance(picture.recipe, ZImageRecipe)
    return picture.recipe
