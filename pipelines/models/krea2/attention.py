"""Krea 2's attention: torch's SDPA as AI Toolkit calls it, or another kernel by diffusers' dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# AI Toolkit krea2/src/mmdit.py: the first of them that can run does
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Dispatched:
    """What diffusers sets a backend on; without one, or where a mask is needed, SDPA with heads in groups."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    @property
    def takes_masks(self) -> bool:
        """Whether the kernel takes a mask; those of other packages take none."""
        return self._attention_backend in (None, AttentionBackendName.NATIVE)

    def __call__(
        self,
        attention: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        if mask is not None or self.takes_masks:
            with sdpa_kernel(_ORDER, set_priority=True):
                mixed = nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=mask, enable_gqa=groups > 1
                )
            return mixed.transpose(1, 2).flatten(2)
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2)


class GroupedAttention(nn.Module, AttentionModuleMixin):
    """[B, heads, tokens, channels] of queries, of fewer heads for keys and values -> [B, tokens, width].

    The mask is bool, [B, 1, queries, keys], True where a query sees a key; None shows all.
    """

    _default_processor_cls = Dispatched
    _available_processors = [Dispatched]
    _supports_qkv_fusion = False

    def __init__(self) -> None:
        super().__init__()
        self.processor: Any = Dispatched()

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return self.processor(self, query, key, value, mask)
