"""Between values and pixels, for every model alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def to_pixels(image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[1, 3, H, W] of 0..1 to uint8 [H, W, 3] on the CPU, rounded half to even in float32.

    Args:
        image: clamped; NaN stays NaN.
        dtype: of the run; decides what the error advises.

    Raises:
        InputError: a value is NaN.
    """
    import torch

    values = image[0].permute(1, 2, 0).float().cpu()
    if not bool(torch.isfinite(values).all()):
        cause = (
            "float16 does not hold this model's values. Choose bfloat16 or float32 on the loader."
            if dtype == torch.float16
            else "Try a smaller guidance_scale or LoRA strength."
        )
        raise InputError(f"The picture came out as NaN or Inf. {cause}")
    return (values * 255).round().to(torch.uint8)
