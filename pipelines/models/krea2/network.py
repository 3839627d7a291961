"""Krea 2's transformer in the released layout, with the roundings of AI Toolkit's.

diffusers has the same network as ``Krea2Transformer2DModel``. In float32 the two agree to 5e-7; in bfloat16, what
everybody runs, they are off by 1.6e-2 on a tiny model: AI Toolkit's rounds the scales of its norms to the run's dtype,
lets heads of queries share those of keys in SDPA itself, and pads all tokens to a multiple of 256 under a mask.

Source of the numbers: AI Toolkit extensions_built_in/diffusion_models/krea2/src/mmdit.py and pipeline.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...errors import FileError
from .attention import Dispatched
from .blocks import KeysAndValues, Modulated, RMSNorm, Rotation, SingleStreamBlock, Span, TextFusionBlock
from .files import PATCH, TEXT_BLOCKS

_LONGEST_PERIOD = 10000.0
_TIME_FACTOR = 1000.0
_STEP = 256  # tokens; AI Toolkit fills up to a multiple of it, for the sake of compiled kernels


@dataclass
class ReferenceMemory:
    """The references' keys and values, from the call that first has them to all later ones.

    Attributes:
        pairs: of each block, in order; empty before the first call.
    """

    pairs: list[KeysAndValues] = field(default_factory=list)


class Krea2Transformer(ModelMixin, ConfigMixin):
    """A picture's latents, its noise level and a text's hidden states to the velocity from image to noise.

    Args:
        channels: of the latents.
        width: of the blocks.
        heads, kv_heads: of queries; of keys and values.
        mlp: width inside the feed-forward layers.
        layers: main blocks.
        time_width: channels of the embedded noise level.
        text_width: of a hidden state of the text encoder.
        text_heads, text_kv_heads, text_mlp: of the blocks that fuse a text's states.
        text_states: how many hidden states a text token has side by side.
        theta: base of the rotary frequencies.

    Raises:
        FileError: a head is no multiple of 16 channels long, from which its three position axes are cut.
    """

    _no_split_modules: ClassVar = ["SingleStreamBlock"]
    _repeated_blocks: ClassVar = ["SingleStreamBlock"]
    _skip_layerwise_casting_patterns: ClassVar = ["norm"]

    @register_to_config
    def __init__(
        self,
        channels: int = 16,
        width: int = 6144,
        heads: int = 48,
        kv_heads: int = 12,
        mlp: int = 16384,
        layers: int = 28,
        time_width: int = 256,
        text_width: int = 2560,
        text_heads: int = 20,
        text_kv_heads: int = 20,
        text_mlp: int = 6912,
        text_states: int = 12,
        theta: float = 1000.0,
    ) -> None:
        super().__init__()
        head = width // heads
        sixteenth = head // 16
        self.axes = (head - 12 * sixteenth, 6 * sixteenth, 6 * sixteenth)
        if any(channels % 2 or not channels for channels in self.axes) or width % heads:
            raise FileError(
                f"The transformer's configuration cannot be used: {heads} heads of {width} channels leave "
                f"{list(self.axes)} for the axes of positions. Download it again."
            )
        self.theta, self.time_width, self.text_states = theta, time_width, text_states
        self.first = nn.Linear(channels * PATCH**2, width)
        self.blocks = nn.ModuleList(SingleStreamBlock(width, heads, kv_heads, mlp) for _ in range(layers))
        self.tmlp = nn.Sequential(nn.Linear(time_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))
        self.txtfusion = TextFusion(text_states, text_width, text_heads, text_kv_heads, text_mlp)
        self.txtmlp = nn.Sequential(
            RMSNorm(text_width), nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.last = LastLayer(width, channels * PATCH**2)
        self.tproj = nn.Sequential(nn.GELU(approximate="tanh"), nn.Linear(width, 6 * width))

    def forward(
        self,
        latents: torch.Tensor,
        time: torch.Tensor,
        text: torch.Tensor,
        references: Sequence[torch.Tensor] = (),
        isolated: bool = False,
        memory: ReferenceMemory | None = None,
    ) -> torch.Tensor:
        """The velocity, [1, channels, h, w].

        Args:
            latents: [1, channels, h, w].
            time: noise level 0..1, [1], in the run's dtype.
            text: [1, L, states * text width]: a token's states, one after the other.
            references: latents of pictures to look at, [channels, h, w] each.
            isolated: whether the references see nothing but each other.
            memory: of isolated references; the first call fills it, and later ones take them from it.
        """
        reused = memory is not None and bool(memory.pairs)
        pictures = [latents[0], *(() if reused else references)]
        image = self.first(torch.cat([tokens_of(picture) for picture in pictures])[None])
        count = (latents.shape[-2] // PATCH) * (latents.shape[-1] // PATCH)
        embedded = self.tmlp(self._sinusoid(time, image.dtype))
        context = self.txtmlp(self.txtfusion(text.unflatten(-1, (self.text_states, -1)), self._takes_masks))
        tokens = torch.cat((context, image), dim=1)
        # the text's, then the picture's; from there on the references'
        own, there = context.shape[1] + count, tokens.shape[1]
        padding = -there % _STEP if self._takes_masks else 0
        tokens = nn.functional.pad(tokens, (0, 0, 0, padding))
        positions = torch.cat((_text_positions(context.shape[1]), *map(_positions, pictures, range(len(pictures)))))
        rotation = self._rotation(nn.functional.pad(positions, (0, 0, 0, padding)), tokens.device)

        modulated, span = Modulated(self.tproj(embedded)), None
        if there > own:
            start = self.tmlp(self._sinusoid(torch.zeros_like(time), image.dtype))
            modulated = Modulated(modulated.vector, self.tproj(start), own)
            span = None if memory is None else Span(own, there, memory.pairs)
        known = memory.pairs if reused and memory is not None else []
        mask = self._mask(tokens, own, there, isolated, known)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, modulated, rotation, mask, span, known[index] if known else None)
        # of all tokens, and cut afterwards: a product of fewer rows may round otherwise
        velocity = self.last(tokens, embedded)[0, context.shape[1] : own]
        return latents_of(velocity, latents.shape[-2] // PATCH)[None]

    @property
    def _takes_masks(self) -> bool:
        processor = self.txtfusion.refiner_blocks[0].get_submodule("attn.attention").processor
        return not isinstance(processor, Dispatched) or processor.takes_masks

    def _mask(
        self, tokens: torch.Tensor, own: int, there: int, isolated: bool, known: Sequence[KeysAndValues]
    ) -> torch.Tensor | None:
        """Which token sees which: all that are there see each other, but isolated references only themselves.

        The kept keys of ``known`` references stand behind all tokens.
        """
        if not self._takes_masks and not (isolated and there > own):
            return None
        seen = torch.arange(tokens.shape[1], device=tokens.device) < there
        mask = seen[:, None] * seen[None, :]
        if isolated and there > own:
            reference = seen & (torch.arange(tokens.shape[1], device=tokens.device) >= own)
            mask = mask & (~reference[:, None] | reference[None, :])
        if known:
            mask = torch.cat((mask, seen[:, None].expand(-1, known[0][0].shape[2])), dim=1)
        return mask[None, None]

    def _sinusoid(self, time: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[1] -> [1, 1, time width]; computed in float32."""
        half = self.time_width // 2
        steps = torch.arange(half, dtype=torch.float32, device=time.device)
        angles = (time.float() * _TIME_FACTOR)[:, None, None] * torch.exp(-math.log(_LONGEST_PERIOD) * steps / half)
        return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1).to(dtype)

    def _rotation(self, positions: torch.Tensor, device: torch.device) -> Rotation:
        """Tables for positions float64 [tokens, 3]; made in float64, and on the CPU where a device has none."""
        positions = positions.to("cpu" if device.type == "mps" else device)
        angles = []
        for axis, channels in enumerate(self.axes):
            exponents = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device) / channels
            angles.append(positions[:, axis, None] * (1.0 / (self.theta**exponents)))
        joined = torch.cat(angles, dim=-1)[None, None]
        return torch.cos(joined).float().to(device), torch.sin(joined).float().to(device)


class TextFusion(nn.Module):
    """The hidden states of each text token to one: mixed with each other, added up, then mixed along the tokens."""

    def __init__(self, states: int, width: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(TextFusionBlock(width, heads, kv_heads, inner) for _ in range(TEXT_BLOCKS))

        self.layerwise_blocks = blocks()
        self.projector = nn.Linear(states, 1, bias=False)
        self.refiner_blocks = blocks()

    def forward(self, x: torch.Tensor, masked: bool) -> torch.Tensor:
        """[1, L, states, width] -> [1, L, width]; ``masked`` is whether a mask that hides nothing is given, too."""
        length = x.shape[1]
        x = x[0]
        for block in self.layerwise_blocks:
            x = block(x.contiguous())
        x = self.projector(x.transpose(1, 2)).reshape(1, length, -1)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=x.device) if masked else None
        for block in self.refiner_blocks:
            x = block(x, mask)
        return x


class LastModulation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Parameter(torch.zeros(2, width))

    def forward(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[1, 1, width] -> scale and shift, each [1, 1, width]."""
        return (vector + self.lin[None]).chunk(2, dim=1)


class LastLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = nn.Linear(width, channels)
        self.modulation = LastModulation(width)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(vector)
        return self.linear((1 + scale) * self.norm(x) + shift)


def tokens_of(picture: torch.Tensor) -> torch.Tensor:
    """[channels, h, w] -> [tokens, channels * patch * patch]."""
    split = picture.unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH))
    return split.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)


def latents_of(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of :func:`tokens_of`, of so many rows of tokens."""
    split = tokens.reshape(rows, tokens.shape[0] // rows, -1, PATCH, PATCH)
    return split.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def _text_positions(count: int) -> torch.Tensor:
    """Texts stand where the picture begins: their order is in their hidden states."""
    return torch.zeros(count, 3, dtype=torch.float64)


def _positions(picture: torch.Tensor, number: int) -> torch.Tensor:
    """float64 [tokens, 3] of latents: 0 for the picture and 1, 2, ... for references, then row and column."""
    axes = (
        torch.tensor([number], dtype=torch.float64),
        torch.arange(picture.shape[-2] // PATCH, dtype=torch.float64),
        torch.arange(picture.shape[-1] // PATCH, dtype=torch.float64),
    )
    return torch.cartesian_prod(*axes)
