"""FLUX.2's autoencoder as a part. Its latents are normalised inside, so that the model's scale is ComfyUI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import FileError
from ..flux_vae.autoencoder import DECODER_VALUES
from ..part import Autoencoder
from .network import Flux2AutoEncoder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...weights.checkpoint import Checkpoint
    from ...weights.source import Source

_PATCH = 4  # pixels of 2 x 2 in a token


class Flux2Vae(Autoencoder):
    """The part ``vae``."""

    def __init__(self) -> None:
        super().__init__("vae", Flux2AutoEncoder, blocks=(), needs="which is not FLUX.2's")

    def check_channels(self, checkpoint: Checkpoint, denoiser: str) -> None:
        """Raises FileError where the denoiser takes tokens of another number of channels."""
        source, other = checkpoint.source(self.name), checkpoint.source(denoiser)
        channels = source.config().get("latent_channels")
        given = channels * _PATCH if isinstance(channels, int) else None
        wanted = other.config().get("in_channels")
        if given != wanted:
            raise FileError(
                f"The VAE of {source.name!r} makes tokens of {given} channels, and the {denoiser} of {other.name!r} "
                f"takes {wanted}. FLUX.2 has a VAE of its own, flux2-vae.safetensors or the ae.safetensors of its "
                "repository."
            )

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        if latents is None:
            return 1 << 31
        # a decoder of FLUX.1's shape, on the latents before they are put together
        return DECODER_VALUES * _PATCH * latents[-1] * latents[-2] * dtype.itemsize

    def encode(self, module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, Flux2AutoEncoder)
        return module.encode(pixels)

    def to_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        return latents

    def from_comfy(self, latents: torch.Tensor, source: Source) -> torch.Tensor:
        return latents
