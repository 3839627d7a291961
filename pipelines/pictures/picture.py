"""A picture as a value: what caches can tell from another one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Picture:
    """Pixels; two pictures are equal where their sizes and bytes are.

    Attributes:
        pixels: uint8 [H, W, 3], on the CPU; nobody writes to it.
        sha256: of the bytes, row by row.
    """

    pixels: torch.Tensor = field(compare=False, repr=False)
    width: int
    height: int
    sha256: str

    @classmethod
    def of(cls, image: torch.Tensor) -> Picture:
        """From ComfyUI's IMAGE [1, H, W, 3] of 0..1: exact where it came from a file of 8 bits."""
        import torch

        pixels = (image[0].detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        return cls(pixels, pixels.shape[1], pixels.shape[0], digest)
