"""Lumina2's schedules and denoising loop.

``diffusers``: the arithmetic, and the order of its roundings, is that of diffusers' ``Lumina2Pipeline`` with its
``FlowMatchEulerDiscreteScheduler``, which AI Toolkit calls too; those recipes differ in ``shift`` and texts alone.
``sd-scripts``: that of ``lumina_minimal_inference.py`` with ``lumina_train_util.denoise`` and the scheduler of
``sd3_train_utils.py``.

Written out here, and not called, so that a run can start from a latent, be interrupted before each model call, and show
previews.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from .attention import kernel
from .recipes import Lumina2Recipe
from .sd_scripts import transformer_roundings

if TYPE_CHECKING:
    from ...parts.encoder import Embedding
    from ..model import Denoising

_TRAIN_TIMESTEPS = 1000  # scheduler_config.json: num_train_timesteps


@dataclass(frozen=True)
class Prediction:
    """One step's model output, each [1, C, h, w]: velocity from noise to image.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None where it was not run.
        guided: after guidance and rescaling; what moves the latents, from noise to image.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def sigmas(recipe: Lumina2Recipe, steps: int) -> torch.Tensor:
    """[steps + 1], float32: 1 ... , then 0."""
    shift = recipe.shift
    if recipe.scheduler == "sd-scripts":
        # float32 where its scheduler is made, float64 where the steps are set
        lowest = torch.tensor(1 / _TRAIN_TIMESTEPS, dtype=torch.float32)
        lowest = (shift * lowest / (1 + (shift - 1) * lowest)).item()
        x = np.linspace(1.0 * _TRAIN_TIMESTEPS, lowest * _TRAIN_TIMESTEPS, steps) / _TRAIN_TIMESTEPS
        values = torch.from_numpy(shift * x / (1 + (shift - 1) * x)).to(torch.float32)
    else:
        # float32 throughout: shifting in float64 and casting differs by one unit in the last place here and there.
        # NumPy's linspace, since torch's counts from both ends
        x = torch.from_numpy(np.linspace(1.0, 1.0 / steps, steps).astype(np.float32))
        values = shift * x / (1 + (shift - 1) * x)
    return torch.cat([values, torch.zeros(1)])


def model_time(sigma: torch.Tensor) -> torch.Tensor:
    """What the transformer is told: 0 for noise, 1 for the image, [1], float32.

    By way of the timestep, since dividing the product again does not always give sigma back.
    """
    return (1 - sigma * _TRAIN_TIMESTEPS / _TRAIN_TIMESTEPS).reshape(1)


def predict(transformer: nn.Module, latents: torch.Tensor, time: torch.Tensor, picture: Denoising) -> Prediction:
    """Calls the transformer for the prompt, and below ``cfg_trunc_ratio`` for the negative prompt; combines both.

    Guidance is v_u + g * (v_c - v_u), then rescaled as the recipe says.
    """
    recipe = recipe_of(picture)

    def velocity(branch: str, text: Embedding) -> torch.Tensor:
        with picture.calling(branch):
            return transformer(
                hidden_states=latents,
                timestep=time,
                encoder_hidden_states=text.embeds,
                encoder_attention_mask=text.mask,
                return_dict=False,
            )[0]

    cond = velocity("prompt", picture.conditioning[0])
    if len(picture.conditioning) == 1 or not bool(time[0] < recipe.cfg_trunc_ratio):
        return Prediction(cond, None, cond)
    uncond = velocity("negative prompt", picture.conditioning[1])
    guided = uncond + picture.guidance_scale * (cond - uncond)
    if recipe.renorm == "row":
        # diffusers' cfg_normalization, which both of its users leave on; a row is the latent's last axis
        guided = guided * (torch.norm(cond, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    elif recipe.renorm_cfg > 0:
        every = tuple(range(1, cond.ndim))
        limit = torch.linalg.vector_norm(cond, dim=every, keepdim=True) * recipe.renorm_cfg
        norm = torch.linalg.vector_norm(guided, dim=every, keepdim=True)
        if bool(norm >= limit):
            # in place, as there: under CUDA's autocast the norms are float32, and the assignment rounds
            guided[0] = guided[0] * (limit[0] / norm[0])
    return Prediction(cond, uncond, guided)


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the schedule; returns the final latents in the dtype of the first."""
    recipe = recipe_of(picture)
    set_qk_norm_eps(transformer, recipe.qk_norm_eps)
    dtype = picture.latents.dtype
    like_sd_scripts = recipe.modules == "sd-scripts"
    with (
        kernel(transformer, picture.attention),
        transformer_roundings(transformer) if like_sd_scripts else nullcontext(),
        torch.autocast(picture.latents.device.type, dtype, enabled=like_sd_scripts and dtype != torch.float32),
    ):
        latents = picture.latents
        for index, (sigma, following) in enumerate(pairwise(picture.schedule.sigmas)):
            # the scheduler's sign: from image to noise
            velocity = -predict(transformer, latents, model_time(sigma), picture).guided
            state = latents.float()
            x0 = state - velocity * sigma
            if recipe.scheduler == "sd-scripts":
                # by way of the clean latent, not the velocity: other last bits
                latents = (state + (state - x0) / sigma * (following - sigma)).to(velocity.dtype)
            else:
                # sigma is a 0-dim tensor: in bfloat16 the product is rounded to it before the float32 addition
                latents = (state + (following - sigma) * velocity).to(velocity.dtype)
            picture.on_step(index + 1, x0)
    return latents.to(dtype)


def set_qk_norm_eps(transformer: nn.Module, eps: float) -> None:
    """Sets the epsilon of the norms of queries and keys in every block."""
    for name, module in transformer.named_modules():
        if name.endswith((".norm_q", ".norm_k")):
            cast("Any", module).eps = eps


def recipe_of(picture: Denoising) -> Lumina2Recipe:
    assert isinstance(picture.recipe, Lumina2Recipe)
    return picture.recipe
