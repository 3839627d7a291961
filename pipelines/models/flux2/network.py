"""FLUX.2's transformer in the released layout, with the roundings of AI Toolkit's.

diffusers has the same network as ``Flux2Transformer2DModel``. In float32 the two agree to 4e-7; in bfloat16, what
everybody runs, they are off by 8e-3 on a tiny model, since theirs

* rotates queries and keys by tables made in float64, and this one by tables made in float32;
* multiplies time and guidance by 1000 in the caller's float32, this one in the run's dtype: 0.987 becomes 988 there and
  987 here, before the sinusoid;
* holds queries, keys and values of the double blocks in six weights, this one in the two fused ones of the release,
  which is also what LoRAs of AI Toolkit and ComfyUI name; and has scale before shift in its last modulation.

It is a diffusers model all the same: attention goes through diffusers' dispatcher, and attention backends, layerwise
casting, group offloading, regional compilation and context parallelism work on it as on theirs.

Source of the numbers: AI Toolkit extensions_built_in/diffusion_models/flux2/src/model.py.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import silu

from .attention import JointAttention
from .context_parallel import PLAN

_EPS = 1e-6  # of every norm
_SINUSOID = 256  # channels of the embedded time and guidance
_LONGEST_PERIOD = 10000
_TIME_FACTOR = 1000.0

# cosines and sines, each float32 [1, tokens, 1, half of a head's channels]
Rotation = tuple[torch.Tensor, torch.Tensor]


class Flux2Transformer(ModelMixin, ConfigMixin):
    """Image tokens and text tokens to the velocity at the image tokens.

    Args:
        in_channels: of a token, 128: 32 latent channels of 2 x 2 pixels.
        context_in_dim: values of a text token.
        hidden_size: width of the blocks.
        num_heads: of attention.
        depth: double blocks.
        depth_single_blocks: single blocks.
        axes_dim: channels of a head that each of the four position axes rotates.
        theta: base of the rotary frequencies.
        mlp_ratio: width of a feed-forward layer over that of the block.
        guidance_embed: whether guidance is an input; False for klein.
    """

    _no_split_modules: ClassVar = ["DoubleStreamBlock", "SingleStreamBlock"]
    _repeated_blocks: ClassVar = ["DoubleStreamBlock", "SingleStreamBlock"]
    _skip_layerwise_casting_patterns: ClassVar = ["norm"]
    _cp_plan: ClassVar = PLAN

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        context_in_dim: int = 15360,
        hidden_size: int = 6144,
        num_heads: int = 48,
        depth: int = 8,
        depth_single_blocks: int = 48,
        axes_dim: tuple[int, ...] = (32, 32, 32, 32),
        theta: int = 2000,
        mlp_ratio: float = 3.0,
        guidance_embed: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or sum(axes_dim) != hidden_size // num_heads or any(dim % 2 for dim in axes_dim):
            raise ValueError(f"axes_dim {list(axes_dim)} do not fill {num_heads} heads of {hidden_size} channels")
        self.axes_dim = tuple(axes_dim)
        self.theta = theta
        self.img_in = nn.Linear(in_channels, hidden_size, bias=False)
        self.txt_in = nn.Linear(context_in_dim, hidden_size, bias=False)
        self.time_in = Embedder(hidden_size)
        if guidance_embed:
            self.guidance_in = Embedder(hidden_size)
        self.double_stream_modulation_img = Modulation(hidden_size, 6)
        self.double_stream_modulation_txt = Modulation(hidden_size, 6)
        self.single_stream_modulation = Modulation(hidden_size, 3)
        mlp = int(hidden_size * mlp_ratio)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(hidden_size, num_heads, mlp) for _ in range(depth))
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden_size, num_heads, mlp) for _ in range(depth_single_blocks)
        )
        self.final_layer = LastLayer(hidden_size, in_channels)

    def forward(
        self,
        x: torch.Tensor,
        x_ids: torch.Tensor,
        timesteps: torch.Tensor,
        ctx: torch.Tensor,
        ctx_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity from image to noise, [1, tokens, in_channels], at every image token.

        Args:
            x: image tokens [1, tokens, in_channels], the references' behind the picture's.
            x_ids: their positions, int64 [1, tokens, 4]: reference, row, column, 0.
            timesteps: noise level 0..1, [1], in the run's dtype.
            ctx: text tokens [1, length, context_in_dim], all of which are attended to.
            ctx_ids: their positions, int64 [1, length, 4]: 0, 0, 0, index.
            guidance: guidance scale, [1], in the run's dtype; not read without an embedder for it.
        """
        vec = self.time_in(sinusoid(timesteps))
        if self.config["guidance_embed"]:
            assert guidance is not None
            vec = vec + self.guidance_in(sinusoid(guidance))
        of_image, of_text = self.double_stream_modulation_img(vec), self.double_stream_modulation_txt(vec)
        of_both = self.single_stream_modulation(vec)
        image, text = self.img_in(x), self.txt_in(ctx)
        # text stands before the image in every attention
        rotation = self.rotation(torch.cat((ctx_ids, x_ids), dim=1))
        for block in self.double_blocks:
            image, text = block(image, text, rotation, of_image, of_text)
        tokens = torch.cat((text, image), dim=1)
        for block in self.single_blocks:
            tokens = block(tokens, rotation, of_both)
        return self.final_layer(tokens[:, text.shape[1] :], vec)

    def rotation(self, ids: torch.Tensor) -> Rotation:
        """Tables for positions int64 [1, tokens, 4]."""
        angles = []
        for axis, channels in enumerate(self.axes_dim):
            exponents = torch.arange(0, channels, 2, dtype=ids.dtype, device=ids.device) / channels
            angles.append(ids[..., axis, None] * (1.0 / (self.theta**exponents)))
        joined = torch.cat(angles, dim=-1)[:, :, None]
        return torch.cos(joined), torch.sin(joined)


class DoubleStreamBlock(nn.Module):
    """Image and text with weights of their own, attending to each other."""

    def __init__(self, hidden_size: int, num_heads: int, mlp: int) -> None:
        super().__init__()
        self.img_attn = Projections(hidden_size, num_heads)
        self.img_mlp = _mlp(hidden_size, mlp)
        self.txt_attn = Projections(hidden_size, num_heads)
        self.txt_mlp = _mlp(hidden_size, mlp)
        self.norm = nn.LayerNorm(hidden_size, eps=_EPS, elementwise_affine=False)
        self.attention = JointAttention()

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        rotation: Rotation,
        of_image: tuple[torch.Tensor, ...],
        of_text: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = text.shape[1]
        parts = zip(
            self.txt_attn(modulated(self.norm(text), *of_text[:2])),
            self.img_attn(modulated(self.norm(image), *of_image[:2])),
            strict=True,
        )
        query, key, value = (torch.cat(pair, dim=1) for pair in parts)
        mixed = self.attention(rotated(query, rotation), rotated(key, rotation), value)
        image = image + of_image[2] * self.img_attn.proj(mixed[:, length:])
        image = image + of_image[5] * self.img_mlp(modulated(self.norm(image), *of_image[3:5]))
        text = text + of_text[2] * self.txt_attn.proj(mixed[:, :length])
        text = text + of_text[5] * self.txt_mlp(modulated(self.norm(text), *of_text[3:5]))
        return image, text


class SingleStreamBlock(nn.Module):
    """All tokens with the same weights; attention and feed-forward side by side."""

    def __init__(self, hidden_size: int, num_heads: int, mlp: int) -> None:
        super().__init__()
        self._widths = (3 * hidden_size, 2 * mlp)
        self._heads = num_heads
        self.linear1 = nn.Linear(hidden_size, sum(self._widths), bias=False)
        self.linear2 = nn.Linear(hidden_size + mlp, hidden_size, bias=False)
        self.norm = QKNorm(hidden_size // num_heads)
        self.pre_norm = nn.LayerNorm(hidden_size, eps=_EPS, elementwise_affine=False)
        self.mlp_act = SwiGLU()
        self.attention = JointAttention()

    def forward(self, x: torch.Tensor, rotation: Rotation, modulation: tuple[torch.Tensor, ...]) -> torch.Tensor:
        shift, scale, gate = modulation
        qkv, mlp = self.linear1(modulated(self.pre_norm(x), shift, scale)).split(self._widths, dim=-1)
        query, key, value = self.norm(*heads(qkv, self._heads))
        mixed = self.attention(rotated(query, rotation), rotated(key, rotation), value)
        return x + gate * self.linear2(torch.cat((mixed, self.mlp_act(mlp)), dim=2))


class Projections(nn.Module):
    """Queries, keys and values of one stream, and the way back."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self._heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.norm = QKNorm(hidden_size // num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.norm(*heads(self.qkv(x), self._heads))


class QKNorm(nn.Module):
    """Norms of queries and keys; values pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(channels)
        self.key_norm = RMSNorm(channels)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query_norm(query), self.key_norm(key), value


class RMSNorm(nn.Module):
    """Computed in float32, and rounded before the scale as well as after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        normed = exact * torch.rsqrt((exact**2).mean(dim=-1, keepdim=True) + _EPS)
        return normed.to(x.dtype) * self.scale


class SwiGLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        return silu(gate) * value


class Embedder(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(_SINUSOID, hidden_size, bias=False)
        self.out_layer = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_layer(silu(self.in_layer(x)))


class Modulation(nn.Module):
    """``count`` vectors [1, 1, width]: shift, scale and gate of each sublayer."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self._count = count
        self.lin = nn.Linear(hidden_size, count * hidden_size, bias=False)

    def forward(self, vec: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.lin(silu(vec))[:, None].chunk(self._count, dim=-1)


class LastLayer(nn.Module):
    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_channels, bias=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size, bias=False))

    def forward(self, x: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


def _mlp(hidden_size: int, mlp: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden_size, 2 * mlp, bias=False), SwiGLU(), nn.Linear(mlp, hidden_size, bias=False))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (1 + scale) * x + shift


def heads(qkv: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, tokens, 3 * width] -> three of [B, tokens, heads, channels]."""
    query, key, value = qkv.unflatten(-1, (3, count, -1)).unbind(2)
    return query, key, value


def rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """[B, tokens, heads, channels], each pair of channels turned in float32 and rounded once."""
    cosine, sine = rotation
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((cosine * first - sine * second, sine * first + cosine * second), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def sinusoid(value: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 256] in the same dtype; multiplied by 1000 in that dtype first."""
    half = _SINUSOID // 2
    steps = torch.arange(half, dtype=torch.float32, device=value.device)
    angles = (value * _TIME_FACTOR)[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * steps / half)
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1).to(value.dtype)
