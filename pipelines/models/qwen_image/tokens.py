"""Between latents [1, C, 1, h, w] and the tokens that the transformer works on, each of 2 x 2 latent pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PATCH = 2  # latent pixels per token and side


def packed(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, 1, h, w] -> [1, h * w / 4, 4 * C]: row by row; within a token channel by channel, each row by row."""
    _, channels, _, height, width = latents.shape
    patches = latents.reshape(1, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(1, -1, channels * PATCH * PATCH)


def unpacked(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[1, h * w / 4, 4 * C] -> [1, C, 1, h, w]."""
    channels = tokens.shape[-1] // (PATCH * PATCH)
    patches = tokens.reshape(1, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(1, channels, 1, height, width)


def grid(latents: torch.Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens that latents have."""
    return (1, latents.shape[-2] // PATCH, latents.shape[-1] // PATCH)
