"""Where sd-scripts' modules round otherwise than diffusers' in bfloat16 and float16; in float32 they are alike.

Measured against ``lumina_minimal_inference.py`` on the CPU: with these, its transformer, loop and autoencoder are met
to the bit; without, the last latents are off by 7e-3 and the decoded picture by up to 4 levels. Sources:
library/lumina_models.py (RMSNorm), library/flux_models.py (swish, AttnBlock).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@contextmanager
def transformer_roundings(transformer: nn.Module) -> Iterator[None]:
    """Norms round once, after the weight; diffusers' round before it too."""
    norms: list[Any] = [module for module in transformer.modules() if isinstance(module, RMSNorm)]
    try:
        for norm in norms:
            norm.forward = partial(_rms_norm, norm)
        yield
    finally:
        for norm in norms:
            # the class's own again
            vars(norm).pop("forward", None)


def _rms_norm(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    exact = x.float()
    scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + norm.eps)
    assert norm.weight is not None
    return (exact * scale * norm.weight.float()).to(x.dtype)


@contextmanager
def decoder_roundings(vae: AutoencoderKL) -> Iterator[None]:
    """The sigmoid of the activation rounds by itself, and the attention's projections are 1 x 1 convolutions."""
    activations = [
        (module, name)
        for module in vae.decoder.modules()
        for name in ("nonlinearity", "conv_act")
        if isinstance(getattr(module, name, None), nn.SiLU)
    ]
    attentions: list[Any] = [module for module in vae.decoder.modules() if hasattr(module, "set_processor")]
    processors = [attention.processor for attention in attentions]
    try:
        for module, name in activations:
            setattr(module, name, _Swish())
        for attention in attentions:
            attention.set_processor(_ConvolutionalAttention())
        yield
    finally:
        for module, name in activations:
            setattr(module, name, nn.SiLU())
        for attention, processor in zip(attentions, processors, strict=True):
            attention.set_processor(processor)


class _Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class _ConvolutionalAttention:
    """One head over all pixels; [B, C, H, W] in and out, the residual added."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        normed = attn.group_norm(hidden_states)
        query, key, value = (
            _project(layer, normed).flatten(2).transpose(1, 2)[:, None].contiguous()
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(hidden_states.shape)
        return hidden_states + _project(attn.to_out[0], mixed)


def _project(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return conv2d(x, layer.weight[:, :, None, None], layer.bias)
