"""OmniGen2's denoising loop: the arithmetic, and the order of its roundings, of AI Toolkit's copy of the pipeline.

Written out here, and not called, so that a run can start from a latent, be interrupted before each model call, and show
previews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from ..runtime import DenoiseJob, Embedding
from .blocks import OmniGen2AttnProcessor
from .facts import OmniGen2Recipe
from .schedule import times_of


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


def predict(transformer: nn.Module, latents: torch.Tensor, time: torch.Tensor, job: DenoiseJob) -> Prediction:
    """Calls the transformer for the prompt, and with guidance for the negative prompt; combines them.

    The reference images are part of both calls: v_n + g * (v_c - v_n). A guidance by the images above 1 adds a third
    call, for the negative prompt without images: v_b + i * (v_n - v_b) + g * (v_c - v_n).
    """
    assert isinstance(job.recipe, OmniGen2Recipe)
    # rounded before the model's sine and cosine
    time = time.reshape(1).to(latents.dtype)

    def velocity(text: Embedding, references: Sequence[torch.Tensor]) -> torch.Tensor:
        job.check()
        return transformer(latents, time, text.embeds, references)

    cond = velocity(job.conditioning[0], job.control)
    if len(job.conditioning) == 1:
        return Prediction(cond, None, None, cond)
    negative = velocity(job.conditioning[1], job.control)
    image_guidance = job.recipe.image_guidance_scale if job.control else 1.0
    if image_guidance <= 1:
        return Prediction(cond, negative, None, negative + job.guidance_scale * (cond - negative))
    bare = velocity(job.conditioning[1], ())
    guided = bare + image_guidance * (negative - bare) + job.guidance_scale * (cond - negative)
    return Prediction(cond, negative, bare, guided)


def denoise(transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
    """Euler steps along the times of ``job.sigmas``; returns the final latents in the dtype of the first."""
    set_kernel(transformer, job.attention)
    latents = job.latents
    times = times_of(job.sigmas, latents.shape[2] * latents.shape[3])
    for index in range(len(times) - 1):
        time, following = times[index], times[index + 1]
        velocity = predict(transformer, latents, time, job).guided
        state = latents.float()
        clean = state + (1 - time) * velocity
        # the times are 0-dim tensors: in bfloat16 the product is rounded to it before the float32 addition
        latents = (state + (following - time) * velocity).to(velocity.dtype)
        job.on_step(index + 1, clean)
    return latents


def set_kernel(transformer: nn.Module, choice: str) -> None:
    """Makes the next calls use this kernel of attention; ``default`` is torch's SDPA."""
    backend = None if choice == "default" else AttentionBackendName(choice)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, OmniGen2AttnProcessor):
            processor._attention_backend = backend
