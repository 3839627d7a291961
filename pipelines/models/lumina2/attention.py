"""Lumina2's attention through another kernel.

diffusers' ``set_attention_backend`` reports success on this model and changes nothing: its processor calls torch's SDPA
by itself. This one does the same operations, and hands the last one to diffusers' dispatcher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

from ...layers.attention import backend_name

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def kernel(transformer: nn.Module, backend: str) -> Iterator[None]:
    """Runs the attention of the main blocks and the noise refiner through ``backend``; ``default`` leaves all as it is.

    The context refiner keeps SDPA: it is given a mask, which the kernels do not take, and is a hundredth of the work.
    """
    if backend == "default":
        yield
        return
    attentions: list[Any] = [
        module
        for name, module in transformer.named_modules()
        if hasattr(module, "set_processor") and not name.startswith("context_refiner.")
    ]
    processors = [attention.processor for attention in attentions]
    try:
        for attention in attentions:
            attention.set_processor(_Dispatched(backend_name(backend)))
        yield
    finally:
        for attention, processor in zip(attentions, processors, strict=True):
            attention.set_processor(processor)


class _Dispatched:
    """Projections, norms, rotary embedding and grouped heads as in diffusers' Lumina2 processor."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | None = None,
        base_sequence_length: int | None = None,
    ) -> torch.Tensor:
        query, key, value = (
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
        )
        dtype, width = query.dtype, query.shape[-1]
        query, key, value = (part.unflatten(-1, (-1, width // attn.heads)) for part in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_rotated(part, image_rotary_emb) for part in (query, key))
        groups = attn.heads // key.shape[2]
        key, value = (part.repeat_interleave(groups, dim=2) for part in (key, value))
        scale = attn.scale
        if base_sequence_length is not None:
            scale = math.sqrt(math.log(hidden_states.shape[1], base_sequence_length)) * scale
        if attention_mask is not None:
            attention_mask = attention_mask.bool()[:, None, None, :]
        mixed = dispatch_attention_fn(
            query.to(dtype),
            key.to(dtype),
            value,
            attn_mask=attention_mask,
            scale=scale,
            backend=AttentionBackendName(self._backend),
        )
        projection, dropout = attn.to_out
        return dropout(projection(mixed.flatten(2).to(dtype)))


def _rotated(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    return cast("torch.Tensor", apply_rotary_emb(x, frequencies, use_real=False))
