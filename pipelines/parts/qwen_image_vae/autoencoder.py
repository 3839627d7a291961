"""Qwen-Image's autoencoder as a part: diffusers' ``AutoencoderKLQwenImage``, a mean and a deviation for each channel.

Latents are [1, 16, 1, h, w]: the network is one for video, and a picture is one frame. What models make of their
latents before they are decoded differs in its roundings, and is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLQwenImage
from torch import nn

from ...errors import FileError
from ..part import Autoencoder

if TYPE_CHECKING:
    from ...weights.checkpoint import Checkpoint
    from ...weights.source import Source

DOWNSCALE = 8  # pixels per latent pixel and side
# values of a decoder's activations for each latent pixel: ComfyUI's measure of this network (comfy/sd.py)
_DECODER_VALUES = 2200 * 64


class QwenImageVae(Autoencoder):
    """The part ``vae`` of a model that has Qwen-Image's.

    Args:
        needs: closes messages about another one, e.g. ``Krea 2 needs Qwen-Image's, qwen_image_vae.safetensors.``
    """

    def __init__(self, needs: str) -> None:
        super().__init__("vae", AutoencoderKLQwenImage, blocks=())
        self._advice = needs

    def check_kind(self, source: Source) -> None:
        super().check_kind(source)
        config = source.config()
        channels = config.get("z_dim", 16)
        for name in ("latents_mean", "latents_std"):
            values = config.get(name)
            if not isinstance(values, list) or len(values) != channels:
                raise FileError(f"{source.name!r}: {source.config_name} has no {name} of {channels} numbers.")
        if not all(isinstance(value, int | float) and value for value in config["latents_std"]):
            raise FileError(f"{source.name!r}: {source.config_name} has latents_std {config['latents_std']}.")

    def check_channels(self, checkpoint: Checkpoint, denoiser: str, taken: int) -> None:
        """Raises FileError where the denoiser takes latents of another number of channels, ``taken``."""
        source, other = checkpoint.source(self.name), checkpoint.source(denoiser)
        given = source.config().get("z_dim")
        if given != taken:
            raise FileError(
                f"The VAE of {source.name!r} has {given} channels, and the {denoiser} of {other.name!r} takes "
                f"{taken}. {self._advice}"
            )

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        if latents is None:
            return super().activation_bytes(latents, dtype)
        return _DECODER_VALUES * latents[-1] * latents[-2] * dtype.itemsize

    def encode(self, module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, AutoencoderKLQwenImage)
        return scaled(encoded(module, pixels, tiled=False), module.config)

    def to_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        mean, std = constants(source.config(), latents)
        return latents * std + mean

    def from_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        return scaled(latents, source.config())


def scaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """What the autoencoder gives -> the model's latents, both [1, C, 1, h, w]: by constants in the latents' dtype."""
    mean, std = constants(config, latents)
    return (latents - mean) / std


def constants(config: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, each [1, C, 1, 1, 1], rounded to the dtype of ``like`` and on its device."""
    mean, std = (
        torch.tensor(config[name]).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
        for name in ("latents_mean", "latents_std")
    )
    return mean, std


def encoded(vae: AutoencoderKLQwenImage, pixels: torch.Tensor, *, tiled: bool) -> torch.Tensor:
    """Pixels [1, 3, H, W], of -1..1 -> the mean of the posterior [1, C, 1, H / 8, W / 8], as the network gives it.

    Args:
        vae: the loaded part.
        pixels: in its dtype.
        tiled: see :func:`decoded`.
    """
    return posterior(vae, pixels, tiled=tiled).mode()


def posterior(vae: AutoencoderKLQwenImage, pixels: torch.Tensor, *, tiled: bool) -> Any:
    """diffusers' distribution that :func:`encoded` takes the mean of."""
    inside: Any = pixels[:, :, None]
    with _tiling(vae, tiled):
        return vae.encode(inside, return_dict=False)[0]


def decoded(vae: AutoencoderKLQwenImage, latents: torch.Tensor, *, tiled: bool) -> torch.Tensor:
    """Latents [1, C, 1, h, w] in the network's own scale -> [1, 3, H, W], in its dtype; whole pictures are in -1..1.

    Args:
        vae: the loaded part.
        latents: in its dtype.
        tiled: whether a side above 256 pixels is cut into tiles of 256 pixels, a new one every 192, which are blended
            where they overlap: AI Toolkit's ``low_vram``. Another picture, which diffusers does not clamp to -1..1.
    """
    inside: Any = latents
    with _tiling(vae, tiled):
        return vae.decode(inside, return_dict=False)[0][:, :, 0]


@contextmanager
def _tiling(vae: AutoencoderKLQwenImage, tiled: bool) -> Iterator[None]:
    """The network is shared by runs that tile and runs that do not: it is left as it was."""
    vae.use_tiling = tiled
    try:
        yield
    finally:
        vae.use_tiling = False
