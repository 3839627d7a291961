"""Lumina2's schedule and denoising loop.

The arithmetic, and the order of its roundings, is that of diffusers' ``Lumina2Pipeline`` with its
``FlowMatchEulerDiscreteScheduler``, which AI Toolkit calls too; the recipes differ in ``shift`` and texts alone.
Written out here, and not called, so that a run can start from a latent, be interrupted before each model call, and show
previews.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..runtime import DenoiseJob, Embedding

_TRAIN_TIMESTEPS = 1000  # scheduler_config.json: num_train_timesteps


@dataclass(frozen=True)
class Prediction:
    """One step's model output, each [1, C, h, w]: velocity from noise to image.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None without guidance.
        guided: after guidance and rescaling to the norm of ``cond``; what moves the latents, from noise to image.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def shifted_sigmas(steps: int, shift: float) -> torch.Tensor:
    """[steps + 1], float32: 1 ... , then 0.

    float32 throughout: shifting in float64 and casting differs by one unit in the last place here and there. NumPy's
    linspace, since torch's counts from both ends.
    """
    x = torch.from_numpy(np.linspace(1.0, 1.0 / steps, steps).astype(np.float32))
    sigmas = shift * x / (1 + (shift - 1) * x)
    return torch.cat([sigmas, torch.zeros(1)])


def model_time(sigma: torch.Tensor) -> torch.Tensor:
    """What the transformer is told: 0 for noise, 1 for the image, [1], float32.

    By way of the timestep, since dividing the product again does not always give sigma back.
    """
    return (1 - sigma * _TRAIN_TIMESTEPS / _TRAIN_TIMESTEPS).reshape(1)


def predict(transformer: nn.Module, latents: torch.Tensor, time: torch.Tensor, job: DenoiseJob) -> Prediction:
    """Calls the transformer once per text and combines the results.

    Guidance is v_u + g * (v_c - v_u), scaled so that each row of the latent (its last axis) keeps the length that it
    has in v_c: diffusers' ``cfg_normalization``, which both references leave on.
    """

    def velocity(text: Embedding) -> torch.Tensor:
        job.check()
        return transformer(
            hidden_states=latents,
            timestep=time,
            encoder_hidden_states=text.embeds,
            encoder_attention_mask=text.mask,
            return_dict=False,
        )[0]

    cond = velocity(job.conditioning[0])
    if len(job.conditioning) == 1:
        return Prediction(cond, None, cond)
    uncond = velocity(job.conditioning[1])
    guided = uncond + job.guidance_scale * (cond - uncond)
    norms = torch.norm(cond, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True)
    return Prediction(cond, uncond, guided * norms)


def denoise(transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
    """Euler steps along ``job.sigmas``; returns the final latents in the dtype of the first."""
    latents = job.latents
    for index in range(len(job.sigmas) - 1):
        sigma, following = job.sigmas[index], job.sigmas[index + 1]
        # the scheduler's sign: from image to noise
        velocity = -predict(transformer, latents, model_time(sigma), job).guided
        state = latents.float()
        # sigma is a 0-dim tensor: in bfloat16 the product is rounded to bfloat16 before the float32 addition
        latents = (state + (following - sigma) * velocity).to(velocity.dtype)
        job.on_step(index + 1, state - sigma * velocity)
    return latents
