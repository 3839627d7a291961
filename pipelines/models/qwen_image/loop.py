"""Qwen-Image's schedule and denoising loop: the arithmetic, and the order of its roundings, of diffusers' pipeline.

Latents are kept in the run's dtype; each step is made in float32 and rounded. Written out here, and not called, so that
a run can start from a latent, be interrupted before each model call, and show previews.

Source: diffusers pipelines/qwenimage/pipeline_qwenimage.py and schedulers/scheduling_flow_match_euler_discrete.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ...layers.attention import kernel
from .recipes import LAST_SIGMA, LEAST_SHIFT, LEAST_TOKENS, MOST_SHIFT, MOST_TOKENS, QwenImageRecipe
from .tokens import grid, packed, unpacked

if TYPE_CHECKING:
    from ...parts.encoder import Embedding
    from ..model import Denoising

_TRAIN_TIMESTEPS = 1000  # scheduler_config.json: num_train_timesteps


@dataclass(frozen=True)
class Prediction:
    """One step's velocity from image to noise, each [1, tokens, 4 * C], of the picture's own tokens alone.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None where it was not run.
        guided: what moves the latents.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def sigmas(steps: int, tokens: int) -> torch.Tensor:
    """[steps + 1], float32, from 1 to 0.02, then 0; NaN for one step.

    Args:
        steps: how many.
        tokens: of the picture, without control images.
    """
    slope = (MOST_SHIFT - LEAST_SHIFT) / (MOST_TOKENS - LEAST_TOKENS)
    factor = math.exp(tokens * slope + (LEAST_SHIFT - slope * LEAST_TOKENS))
    x = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    rest = 1 - factor / (factor + (1 / x - 1))
    # as with NumPy 1, which AI Toolkit's scipy 1.12 asks for: 0.98 stays a float64. Under NumPy 2 the scheduler rounds
    # it first, and so a third of the schedules have levels that differ in their last place
    stretch = np.float32(float(rest[-1]) / (1 - LAST_SIGMA))
    with np.errstate(invalid="ignore"):
        values = 1 - rest / stretch
    return torch.cat([torch.from_numpy(values), torch.zeros(1)])


def model_time(sigma: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the transformer is told, [1]: the timestep is rounded to the run's dtype first, and divided in it."""
    return (sigma * _TRAIN_TIMESTEPS).reshape(1).to(dtype) / _TRAIN_TIMESTEPS


class Predictor:
    """The transformer's calls of one picture.

    Args:
        transformer: diffusers'.
        picture: its ``references`` are the control images' latents, each [1, C, 1, h, w], in order.
    """

    def __init__(self, transformer: nn.Module, picture: Denoising) -> None:
        self._transformer = transformer
        self._picture = picture
        self._grids = [grid(latents) for latents in (picture.latents, *picture.references)]
        self._references = [packed(latents) for latents in picture.references]

    def __call__(self, tokens: torch.Tensor, sigma: torch.Tensor) -> Prediction:
        """The picture's tokens [1, tokens, 4 * C] at a noise level."""
        picture = self._picture
        cond = self._velocity("prompt", tokens, sigma, picture.conditioning[0])
        if len(picture.conditioning) == 1:
            return Prediction(cond, None, cond)
        uncond = self._velocity("negative prompt", tokens, sigma, picture.conditioning[1])
        guided = uncond + picture.guidance_scale * (cond - uncond)
        if recipe_of(picture).cfg_norm:
            length, own = (torch.norm(one, dim=-1, keepdim=True) for one in (cond, guided))
            guided = guided * (length / own)
        return Prediction(cond, uncond, guided)

    def _velocity(self, branch: str, tokens: torch.Tensor, sigma: torch.Tensor, text: Embedding) -> torch.Tensor:
        with self._picture.calling(branch):
            found = self._transformer(
                hidden_states=torch.cat([tokens, *self._references], dim=1),
                timestep=model_time(sigma, tokens.dtype),
                encoder_hidden_states=text.embeds,
                # a text has no padding: without a mask, torch's SDPA takes another kernel than with one of ones
                encoder_hidden_states_mask=None,
                img_shapes=[self._grids],
                return_dict=False,
            )[0]
        return found[:, : tokens.shape[1]]


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the schedule; latents in the run's dtype."""
    height, width = picture.latents.shape[-2:]
    tokens = packed(picture.latents)
    predict = Predictor(transformer, picture)
    with kernel(transformer, picture.attention):
        for index, (sigma, following) in enumerate(pairwise(picture.schedule.sigmas)):
            velocity = predict(tokens, sigma).guided
            clean = tokens.float() - sigma * velocity
            # the product with a level, which has no axis, is rounded to the velocity's dtype
            tokens = (tokens.float() + (following - sigma) * velocity).to(velocity.dtype)
            picture.on_step(index + 1, unpacked(clean, height, width))
    return unpacked(tokens, height, width)


def recipe_of(picture: Denoising) -> QwenImageRecipe:
    assert isinstance(picture.recipe, QwenImageRecipe)
    return picture.recipe
