"""FLUX.2's attention, by diffusers' dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


class Dispatched:
    """What diffusers sets a backend or a parallel configuration on; without a backend, the one that is active."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self, attention: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        # diffusers 0.35 has no parallel configuration
        parallel = {} if self._parallel_config is None else {"parallel_config": self._parallel_config}
        mixed = dispatch_attention_fn(query, key, value, backend=self._attention_backend, **parallel)
        return mixed.flatten(2)


class JointAttention(nn.Module, AttentionModuleMixin):
    """Attention of all tokens to all: [B, tokens, heads, channels] three times -> [B, tokens, width]."""

    _default_processor_cls = Dispatched
    _available_processors = [Dispatched]
    _supports_qkv_fusion = False

    def __init__(self) -> None:
        super().__init__()
        self.processor: Any = Dispatched()

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.processor(self, query, key, value)
