"""The blocks of OmniGen2's transformer, rounding as in AI Toolkit's copy of the model without flash-attn and triton.

Where that copy's module and diffusers' of the same name give the same bits, diffusers' is used here. The norms of
queries and keys are diffusers', which round before the weight as well; all others round once, after it.

AI Toolkit runs other kernels where packages for them are installed:

* triton (on Linux it comes with torch for CUDA): RMSNorm in one kernel. Like torch's here, it computes in float32 and
  rounds once. But it takes 1 / sqrt where torch takes rsqrt, and sums a row in an order that triton's autotuning finds
  by timing, which may differ between two runs of the trainer itself. So the last bits in float32 differ, and in
  bfloat16 the few values that lie next to a rounding edge, by one step.
* flash-attn (not among AI Toolkit's requirements): its attention, and a SwiGLU that rounds once where this one rounds
  the gate as well.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.attention import AttentionModuleMixin, LuminaFeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, apply_rotary_emb
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import nn

CONDITION_WIDTH = 1024  # of the time embedding; narrower models have their own width
_FREQUENCIES = 256
_QK_NORM_EPS = 1e-5


class OmniGen2AttnProcessor:
    """Projections, norms of queries and keys, rotary embedding, grouped heads, and diffusers' dispatcher.

    Without a backend it is torch's SDPA with a mask even where every key is seen, as in AI Toolkit: on CUDA the mask
    decides which of SDPA's kernels runs. Other kernels take no mask, and get none; where one is needed, SDPA stays.
    """

    def __init__(self) -> None:
        self._attention_backend: AttentionBackendName | None = None
        self._parallel_config = None

    def __call__(
        self,
        attn: OmniGen2Attention,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        rotary: torch.Tensor,
        padded: bool,
    ) -> torch.Tensor:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, attn.head_width)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        dtype = query.dtype
        query, key = (
            cast("torch.Tensor", apply_rotary_emb(norm(part), rotary, use_real=False)).to(dtype)
            for norm, part in ((attn.norm_q, query), (attn.norm_k, key))
        )
        # repeated head by head in memory, for the kernels see strides
        key, value = (
            part.transpose(1, 2).repeat_interleave(attn.groups, dim=1).transpose(1, 2) for part in (key, value)
        )
        backend = self._attention_backend
        masked = backend is None or padded
        mixed = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=keys[:, None, None, :] if masked else None,
            scale=attn.head_width**-0.5,
            backend=AttentionBackendName.NATIVE if masked else backend,
        )
        return attn.to_out[0](mixed.flatten(2).to(dtype))


class OmniGen2Attention(nn.Module, AttentionModuleMixin):
    """Self-attention with fewer heads for keys and values than for queries.

    Args:
        width: of the tokens.
        heads: of the queries.
        kv_heads: of keys and values; divides ``heads``.
    """

    _default_processor_cls = OmniGen2AttnProcessor
    _available_processors = [OmniGen2AttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.groups = heads // kv_heads
        self.norm_q = DiffusersRMSNorm(self.head_width, _QK_NORM_EPS)
        self.norm_k = DiffusersRMSNorm(self.head_width, _QK_NORM_EPS)
        self.to_q = nn.Linear(width, heads * self.head_width, bias=False)
        self.to_k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.to_v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        # a list for its name, to_out.0; what stands behind it in diffusers is a dropout
        self.to_out = nn.ModuleList([nn.Linear(heads * self.head_width, width, bias=False)])
        self.processor: Any = OmniGen2AttnProcessor()

    def forward(
        self, hidden_states: torch.Tensor, keys: torch.Tensor, rotary: torch.Tensor, padded: bool
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, keys, rotary, padded)


class Modulation(nn.Module):
    """RMSNorm, and from the time embedding its scale, and scales and gates for the rest of the block."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(min(width, CONDITION_WIDTH), 4 * width)
        self.norm = nn.RMSNorm(width, eps=eps)

    def forward(
        self, x: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The normed [B, L, width]; attention's gate, the feed-forward's scale and its gate, each [B, 1, width]."""
        scale, gate, mlp_scale, mlp_gate = self.linear(self.silu(time)).unsqueeze(1).chunk(4, dim=-1)
        return self.norm(x) * (1 + scale), gate, mlp_scale, mlp_gate


class OmniGen2TransformerBlock(nn.Module):
    """Attention and feed-forward, normed before and after; a modulated one reads the time embedding.

    Args:
        width: of the tokens.
        heads, kv_heads: see :class:`OmniGen2Attention`.
        multiple_of: the feed-forward's width is 4 * width, times ``ffn_dim_multiplier``, rounded up to this.
        ffn_dim_multiplier: None is 1.
        eps: of the norms.
        modulated: whether there is a time.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, multiple_of: int, ffn_dim_multiplier: float | None, eps: float,
        modulated: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attn = OmniGen2Attention(width, heads, kv_heads)
        self.feed_forward = LuminaFeedForward(width, 4 * width, multiple_of, ffn_dim_multiplier)
        self.norm1 = Modulation(width, eps) if modulated else nn.RMSNorm(width, eps=eps)
        self.ffn_norm1 = nn.RMSNorm(width, eps=eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.ffn_norm2 = nn.RMSNorm(width, eps=eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        rotary: torch.Tensor,
        time: torch.Tensor | None = None,
        padded: bool = False,
    ) -> torch.Tensor:
        """One block.

        Args:
            hidden_states: [B, L, width].
            keys: [B, L], bool: the tokens that are there.
            rotary: [B, L, head / 2], complex.
            time: [B, W], the time embedding, of a modulated block.
            padded: whether ``keys`` leaves any out.
        """
        if time is None:
            hidden_states = hidden_states + self.norm2(self.attn(self.norm1(hidden_states), keys, rotary, padded))
            return hidden_states + self.ffn_norm2(self.feed_forward(self.ffn_norm1(hidden_states)))
        normed, gate, mlp_scale, mlp_gate = self.norm1(hidden_states, time)
        hidden_states = hidden_states + gate.tanh() * self.norm2(self.attn(normed, keys, rotary, padded))
        mixed = self.feed_forward(self.ffn_norm1(hidden_states) * (1 + mlp_scale))
        return hidden_states + mlp_gate.tanh() * self.ffn_norm2(mixed)


class TimeTextEmbedding(nn.Module):
    """Time, 0 for noise and 1 for the image, and the text encoder's features, in the transformer's widths.

    Args:
        width: of the tokens.
        text_width: of the text encoder.
        eps: of the norm.
        scale: by which the time is multiplied.
    """

    def __init__(self, width: int, text_width: int, eps: float, scale: float) -> None:
        super().__init__()
        self.time_proj = Timesteps(_FREQUENCIES, True, 0.0, scale)  # pyright: ignore[reportArgumentType]
        self.timestep_embedder = TimestepEmbedding(_FREQUENCIES, min(width, CONDITION_WIDTH))
        self.caption_embedder = nn.Sequential(nn.RMSNorm(text_width, eps=eps), nn.Linear(text_width, width))

    def forward(self, time: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[1] and [1, L, text_width] -> [1, W] and [1, L, width]."""
        return self.timestep_embedder(self.time_proj(time).to(text.dtype)), self.caption_embedder(text)
