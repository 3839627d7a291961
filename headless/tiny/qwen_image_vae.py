"""A narrow autoencoder with Qwen-Image's structure, which Krea 2 has too: in diffusers' layout and in Wan's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKLQwenImage

from .files import Tensors, read_part, write_tensors

if TYPE_CHECKING:
    from torch import nn

# diffusers' module -> Wan's
_OUTSIDE = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_SIDE = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_RESNET |= {"conv_shortcut": "shortcut"}
_MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
_BLOCKS = 2  # of a level, as in the real one; the decoder has one more


def qwen_image_vae(width: int = 4) -> nn.Module:
    """A new autoencoder: 16 channels of latents, 8 times smaller than the picture; the weights are diffusers' own."""
    make: Any = AutoencoderKLQwenImage
    # everything else is the class' default, as in the released one
    return make(base_dim=width, num_res_blocks=_BLOCKS)


def wan_vae(tensors: Tensors) -> Tensors:
    """diffusers' autoencoder in Wan's names."""
    found: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        found[f"{_wan_module(module)}.{leaf}"] = value
    return found


def write_wan_vae(path: Path, checkpoint: Path) -> Path:
    """The autoencoder as ``qwen_image_vae.safetensors``; returns the path.

    Args:
        path: the file.
        checkpoint: the folder whose ``vae`` it gets.
    """
    return write_tensors(path, wan_vae(read_part(checkpoint, "vae")), {"format": "pt"})


def _wan_module(module: str) -> str:
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    side, _, inside = module.partition(".")
    if inside in _SIDE:
        return f"{side}.{_SIDE[inside]}"
    if middle := re.fullmatch(r"mid_block\.(\w+\.\d)\.(\w+)", inside):
        return f"{side}.{_MIDDLE[middle[1]]}.{_RESNET.get(middle[2], middle[2])}"
    if down := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", inside):
        return f"{side}.downsamples.{down[1]}.{_RESNET.get(down[2], down[2])}"
    up = re.fullmatch(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", inside)
    assert up is not None, module
    place = int(up[3]) if up[2] == "resnets" else _BLOCKS + 1
    return f"{side}.upsamples.{int(up[1]) * (_BLOCKS + 2) + place}.{_RESNET.get(up[4], up[4])}"
