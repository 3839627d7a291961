"""FLUX.2's autoencoder as a network, in the released layout, with the roundings of AI Toolkit's.

diffusers has the same network as ``AutoencoderKLFlux2``. In bfloat16 they differ: this one's activation rounds its
sigmoid by itself, its attention projects by 1 x 1 convolutions, and the statistics that normalise the latents are
rounded to the run's dtype as every weight is. Names are those of ``ae.safetensors``.

Source of the numbers: AI Toolkit extensions_built_in/diffusion_models/flux2/src/autoencoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention

_GROUPS = 32
_EPS = 1e-6
_LATENT_EPS = 1e-4  # of the latents' statistics
_PATCH = 2  # latent pixels a side that make one token


class Flux2AutoEncoder(ModelMixin, ConfigMixin):
    """Pictures to normalised latents of 128 channels at a sixteenth of the size, and back.

    Args:
        in_channels: of a picture, also of what comes back.
        latent_channels: before 2 x 2 of them are put together.
        block_out_channels: width of each level of the encoder, from the full resolution down.
        decoder_block_out_channels: likewise of the decoder; None is the encoder's. The small decoder has its own.
        layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 32,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] | None = None,
        layers_per_block: int = 2,
    ) -> None:
        super().__init__()
        decoder_widths = decoder_block_out_channels or block_out_channels
        self.encoder = Encoder(in_channels, latent_channels, block_out_channels, layers_per_block)
        self.decoder = Decoder(in_channels, latent_channels, decoder_widths, layers_per_block + 1)
        self.bn = nn.BatchNorm2d(_PATCH**2 * latent_channels, eps=_LATENT_EPS, affine=False)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] of -1..1 -> normalised latents [B, 128, H / 16, W / 16]: the mean, nothing is drawn."""
        mean = self.encoder(x).chunk(2, dim=1)[0]
        return self.bn.eval()(pixel_unshuffle(mean, _PATCH))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse: [B, 3, H, W], about -1..1, not clamped."""
        assert self.bn.running_var is not None and self.bn.running_mean is not None
        deviation = torch.sqrt(self.bn.running_var.view(1, -1, 1, 1) + _LATENT_EPS)
        return self.decoder(pixel_shuffle(z * deviation + self.bn.running_mean.view(1, -1, 1, 1), _PATCH))


class Encoder(nn.Module):
    def __init__(self, channels: int, latent_channels: int, widths: Sequence[int], layers: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width = widths[0]
        for level, wide in enumerate(widths):
            self.down.append(Level(width, wide, layers, Downsample if level < len(widths) - 1 else None))
            width = wide
        self.mid = Middle(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(swish(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, channels: int, latent_channels: int, widths: Sequence[int], layers: int) -> None:
        super().__init__()
        width = widths[-1]
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = Middle(width)
        levels = []
        for level, wide in reversed(list(enumerate(widths))):
            levels.append(Level(width, wide, layers, Upsample if level > 0 else None))
            width = wide
        # level 0 is the full resolution, as in the encoder
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next."""

    def __init__(self, width: int, wide: int, layers: int, resample: type[Downsample | Upsample] | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width if layer == 0 else wide, wide) for layer in range(layers))
        self.resample = None
        if resample is not None:
            self.resample = resample.name
            self.add_module(resample.name, resample(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        return x if self.resample is None else self.get_submodule(self.resample)(x)


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, wide, 3, padding=1)
        self.norm2 = _norm(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, wide, 1) if width != wide else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + change


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2)[:, None].contiguous() for layer in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    name = "downsample"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    name = "upsample"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, eps=_EPS)
