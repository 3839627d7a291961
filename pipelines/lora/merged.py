"""The merge that AI Toolkit makes before a preview round: W' = cast(float32(W) + m * (B @ A) * scale), one rounding.

Source: AI Toolkit network_mixins.py, ToolkitModuleMixin.merge_in. There is no inverse here: a merge is
undone by reading the tensor again, since subtracting in bfloat16 leaves 5 to 8 % of the values changed.
"""

from __future__ import annotations

import torch

from .file import LoraWeights


def merge(weight: torch.Tensor, lora: LoraWeights, strength: float, device: str) -> torch.Tensor:
    """The merged weight, in the dtype and on the device of ``weight`` [out, in].

    Args:
        weight: what is there now: the base, or the base with earlier LoRAs of the list.
        lora: this layer's pair.
        strength: AI Toolkit's multiplier.
        device: where the product is computed.
    """
    product = lora.up.to(device) @ lora.down.to(device)
    merged = weight.to(device, torch.float32) + strength * product * lora.scale
    return merged.to(weight.device, weight.dtype)
