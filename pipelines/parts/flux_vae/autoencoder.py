"""FLUX.1's autoencoder as a part: diffusers' ``AutoencoderKL``, one scale and one shift for all channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL

from ...errors import FileError
from ..part import Autoencoder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...weights.checkpoint import Checkpoint
    from ...weights.source import Source

DOWNSCALE = 8  # pixels per latent pixel and side
# values of a decoder's activations for each latent pixel: ComfyUI's measure of this network (comfy/sd.py)
DECODER_VALUES = 2178 * 64


class FluxVae(Autoencoder):
    """The part ``vae`` of a model that has FLUX.1's.

    Args:
        needs: closes messages about another one, e.g. ``OmniGen2 needs FLUX.1's, ae.safetensors.``
    """

    def __init__(self, needs: str) -> None:
        super().__init__("vae", AutoencoderKL, blocks=())
        self._advice = needs

    def check_kind(self, source: Source) -> None:
        super().check_kind(source)
        config = source.config()
        scales = [config.get(name) for name in ("scaling_factor", "shift_factor")]
        if not all(isinstance(scale, int | float) for scale in scales) or not scales[0]:
            raise FileError(f"{source.name!r}: {source.config_name} has scaling_factor, shift_factor {scales}.")

    def check_channels(self, checkpoint: Checkpoint, denoiser: str) -> None:
        """Raises FileError where the denoiser takes latents of another number of channels."""
        source, other = checkpoint.source(self.name), checkpoint.source(denoiser)
        given, wanted = source.config().get("latent_channels"), other.config().get("in_channels")
        if given != wanted:
            raise FileError(
                f"The VAE of {source.name!r} has {given} channels, and the {denoiser} of {other.name!r} takes "
                f"{wanted}. {self._advice}"
            )

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        if latents is None:
            return super().activation_bytes(latents, dtype)
        return DECODER_VALUES * latents[-1] * latents[-2] * dtype.itemsize

    def encode(self, module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, AutoencoderKL)
        inside: Any = pixels
        return scaled(module.encode(inside, return_dict=False)[0].mode(), module.config)

    def to_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        return unscaled(latents, source.config())

    def from_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        return scaled(latents, source.config())


def scaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """What the autoencoder gives -> the model's latents."""
    return (latents - config["shift_factor"]) * config["scaling_factor"]


def unscaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """The model's latents -> what the autoencoder decodes."""
    return latents / config["scaling_factor"] + config["shift_factor"]


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The model's latents [1, C, h, w] -> [1, 3, H, W], about -1..1, in the autoencoder's dtype."""
    inside: Any = unscaled(latents, vae.config)
    return vae.decode(inside, return_dict=False)[0]


def denormalised(image: torch.Tensor) -> torch.Tensor:
    """-1..1 -> 0..1, clamped, in the dtype that it is in: diffusers' VaeImageProcessor."""
    return (image * 0.5 + 0.5).clamp(0, 1)
