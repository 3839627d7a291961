"""FLUX.2's schedule and denoising loop: AI Toolkit's own, which uses no scheduler object.

Source: AI Toolkit extensions_built_in/diffusion_models/flux2/src/sampling.py and pipeline.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...layers.attention import kernel
from .control import ControlTokens
from .tokens import DOWNSCALE, image_ids, latents_of, text_ids, tokens_of

if TYPE_CHECKING:
    from ...parts.encoder import Embedding
    from ...pictures.sizes import Size
    from ..model import Denoising


@dataclass(frozen=True)
class Prediction:
    """One step's velocity from image to noise, each [1, tokens, C], without the references' tokens.

    Attributes:
        cond: for the prompt.
        uncond: for the negative prompt; None where it was not run.
        guided: what moves the latents.
    """

    cond: torch.Tensor
    uncond: torch.Tensor | None
    guided: torch.Tensor


def sigmas(steps: int, size: Size) -> torch.Tensor:
    """[steps + 1], float32, from 1 to 0: shifted the more, the more tokens a picture has, also above 4096.

    mu is linear in the tokens: 0.5 at 256, 1.15 at 4096.
    """
    tokens = (size.width // DOWNSCALE) * (size.height // DOWNSCALE)
    slope = (1.15 - 0.5) / (4096 - 256)
    factor = math.exp(slope * tokens + (0.5 - slope * 256))
    return factor / (factor + (1 / torch.linspace(1, 0, steps + 1) - 1))


class Predictor:
    """The transformer's calls of one picture."""

    def __init__(self, transformer: nn.Module, picture: Denoising) -> None:
        self._transformer = transformer
        self._picture = picture
        device, dtype = picture.latents.device, picture.latents.dtype
        height, width = picture.latents.shape[-2:]
        self._guidance = torch.full((1,), picture.guidance_scale, dtype=dtype, device=device)
        self._ids = [image_ids(height, width).to(device)]
        self._references: list[torch.Tensor] = []
        if picture.references:
            control = ControlTokens(*picture.references)
            self._references.append(control.tokens)
            self._ids.append(control.ids)

    def __call__(self, tokens: torch.Tensor, sigma: float) -> Prediction:
        """Image tokens [1, tokens, C] at a noise level."""
        cond = self._velocity("prompt", tokens, sigma, self._picture.conditioning[0])
        count = tokens.shape[1]
        if len(self._picture.conditioning) == 1:
            return Prediction(cond[:, :count], None, cond[:, :count])
        uncond = self._velocity("negative prompt", tokens, sigma, self._picture.conditioning[1])
        guided = uncond + self._picture.guidance_scale * (cond - uncond)
        return Prediction(cond[:, :count], uncond[:, :count], guided[:, :count])

    def _velocity(self, branch: str, tokens: torch.Tensor, sigma: float, text: Embedding) -> torch.Tensor:
        with self._picture.calling(branch):
            return self._transformer(
                # references are bfloat16 in every run; beside float32 tokens they are promoted
                x=torch.cat((tokens, *self._references), dim=1),
                x_ids=torch.cat(self._ids, dim=1),
                timesteps=torch.full((1,), sigma, dtype=tokens.dtype, device=tokens.device),
                ctx=text.embeds,
                ctx_ids=text_ids(text.embeds.shape[1]).to(tokens.device),
                guidance=self._guidance,
            )


def denoise(transformer: nn.Module, picture: Denoising) -> torch.Tensor:
    """Euler steps along the schedule; the state stays in the run's dtype, rounded after each product and each sum."""
    height, width = picture.latents.shape[-2:]
    tokens = tokens_of(picture.latents)
    # float64 of the float32 values, subtracted as such
    levels = picture.schedule.sigmas.tolist()
    predict = Predictor(transformer, picture)
    with kernel(transformer, picture.attention):
        for index, (sigma, following) in enumerate(pairwise(levels)):
            velocity = predict(tokens, sigma).guided
            x0 = tokens - sigma * velocity
            tokens = tokens + (following - sigma) * velocity
            picture.on_step(index + 1, latents_of(x0, height, width))
    return latents_of(tokens, height, width)
