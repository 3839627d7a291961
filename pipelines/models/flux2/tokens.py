"""Latents as tokens, and the positions of tokens."""

from __future__ import annotations

import torch

DOWNSCALE = 16  # pixels a side of an image token


def image_ids(height: int, width: int, reference: int = 0) -> torch.Tensor:
    """Positions of image tokens in rows, int64 [1, height * width, 4]: reference, row, column, 0."""
    axes = (torch.tensor([reference]), torch.arange(height), torch.arange(width), torch.zeros(1, dtype=torch.int64))
    return torch.cartesian_prod(*axes)[None]


def text_ids(length: int) -> torch.Tensor:
    """Positions of text tokens, int64 [1, length, 4]: 0, 0, 0, index."""
    zero = torch.zeros(1, dtype=torch.int64)
    return torch.cartesian_prod(zero, zero, zero, torch.arange(length))[None]


def tokens_of(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] -> [1, h * w, C]."""
    return latents.flatten(2).transpose(1, 2)


def latents_of(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of :func:`tokens_of`."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))
