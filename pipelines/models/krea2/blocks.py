"""The blocks of Krea 2's transformer in the released layout, with the roundings of AI Toolkit's.

Source of the numbers: AI Toolkit extensions_built_in/diffusion_models/krea2/src/mmdit.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import rms_norm, sigmoid, silu

from .attention import GroupedAttention

_EPS = 1e-5  # of every norm

# cosines and sines, each float32 [1, 1, tokens, half of a head's channels]
Rotation = tuple[torch.Tensor, torch.Tensor]
KeysAndValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Modulated:
    """What modulates a block's tokens: those before ``split`` by one vector, those from there on by another.

    Attributes:
        vector: [1, 1, 6 * width].
        rest: of the tokens from ``split`` on; None where ``vector`` is for all.
        split: the first of the rest.
    """

    vector: torch.Tensor
    rest: torch.Tensor | None = None
    split: int = 0


@dataclass(frozen=True)
class Span:
    """Tokens whose keys and values a call leaves behind for later calls.

    Attributes:
        first, last: of the tokens, and the one after the last.
        kept: gets a pair [B, heads, tokens, channels] of each block, in their order.
    """

    first: int
    last: int
    kept: list[KeysAndValues] = field(default_factory=list)


class RMSNorm(nn.Module):
    """Computed in float32 with a scale that is stored less one, and rounded once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x.float(), self.scale.shape, weight=self.scale.float() + 1.0, eps=_EPS).to(x.dtype)


class QKNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qnorm = RMSNorm(channels)
        self.knorm = RMSNorm(channels)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.qnorm(query), self.knorm(key)


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Self-attention whose result is gated by its input.

    Args:
        width: of the tokens.
        heads: of queries.
        kv_heads: of keys and values; divides ``heads``.
    """

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self._heads, self._kv_heads = heads, kv_heads
        head = width // heads
        self.wq = nn.Linear(width, heads * head, bias=False)
        self.wk = nn.Linear(width, kv_heads * head, bias=False)
        self.wv = nn.Linear(width, kv_heads * head, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.qknorm = QKNorm(head)
        self.wo = nn.Linear(width, width, bias=False)
        self.attention = GroupedAttention()

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        rotation: Rotation | None = None,
        span: Span | None = None,
        more: KeysAndValues | None = None,
    ) -> torch.Tensor:
        query, gate = _heads(self.wq(x), self._heads), self.gate(x)
        key, value = _heads(self.wk(x), self._kv_heads), _heads(self.wv(x), self._kv_heads)
        query, key = self.qknorm(query, key)
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        if span is not None:
            kept = (part[:, :, span.first : span.last].clone() for part in (key, value))
            span.kept.append((next(kept), next(kept)))
        if more is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), more, strict=True))
        return self.wo(self.attention(query, key, value, mask) * sigmoid(gate))


class TextFusionBlock(nn.Module):
    """A block without positions, modulation and gates of its own: across the states of a token, or along the tokens."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.prenorm = RMSNorm(width)
        self.postnorm = RMSNorm(width)
        self.attn = Attention(width, heads, kv_heads)
        self.mlp = SwiGLU(width, inner)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.prenorm(x), mask)
        return x + self.mlp(self.postnorm(x))


class BlockModulation(nn.Module):
    """What a block adds to the modulation that all of them share: six vectors, one row after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Parameter(torch.zeros(6 * width))

    def forward(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (vector + self.lin).chunk(6, dim=-1)


class SingleStreamBlock(nn.Module):
    """All tokens with the same weights: attention, then the feed-forward layer."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.mod = BlockModulation(width)
        self.prenorm = RMSNorm(width)
        self.postnorm = RMSNorm(width)
        self.attn = Attention(width, heads, kv_heads)
        self.mlp = SwiGLU(width, inner)

    def forward(
        self,
        x: torch.Tensor,
        modulated: Modulated,
        rotation: Rotation,
        mask: torch.Tensor | None,
        span: Span | None,
        more: KeysAndValues | None,
    ) -> torch.Tensor:
        """One block.

        Args:
            x: tokens [1, L, width].
            modulated: by what.
            rotation: of their positions.
            mask: see :class:`.attention.GroupedAttention`.
            span: tokens whose keys and values later calls need.
            more: keys and values beside the tokens' own, turned already.
        """
        first = self.mod(modulated.vector)
        rest = None if modulated.rest is None else self.mod(modulated.rest)

        def scaled(tokens: torch.Tensor, scale: int, shift: int) -> torch.Tensor:
            if rest is None:
                return (1 + first[scale]) * tokens + first[shift]
            before, after = tokens[:, : modulated.split], tokens[:, modulated.split :]
            parts = ((1 + first[scale]) * before + first[shift], (1 + rest[scale]) * after + rest[shift])
            return torch.cat(parts, dim=1)

        def gated(tokens: torch.Tensor, gate: int) -> torch.Tensor:
            if rest is None:
                return first[gate] * tokens
            before, after = tokens[:, : modulated.split], tokens[:, modulated.split :]
            return torch.cat((first[gate] * before, rest[gate] * after), dim=1)

        x = x + gated(self.attn(scaled(self.prenorm(x), 0, 1), mask, rotation, span, more), 2)
        return x + gated(self.mlp(scaled(self.postnorm(x), 3, 4)), 5)


def rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """[B, heads, tokens, channels], each pair of channels turned in float32 and rounded once."""
    cosine, sine = rotation
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((cosine * first - sine * second, sine * first + cosine * second), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, L, count * channels] -> [B, count, L, channels]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)
