"""FLUX.1's autoencoder as a single file, ``ae.safetensors``: 16 channels, 8 times smaller, no quant convolutions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, Place, SingleFiles

if TYPE_CHECKING:
    from ...files.header import TensorInfo

# original -> diffusers
_FIXED = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "conv_norm_out"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
_DOWN = re.compile(r"down\.(\d+)\.(?:block\.(\d+)\.(\w+)|downsample\.conv)$")
_UP = re.compile(r"up\.(\d+)\.(?:block\.(\d+)\.(\w+)|upsample\.conv)$")
_MIDDLE = re.compile(r"mid\.(?:block_([12])\.(\w+)|attn_1\.(\w+))$")


def diffusers_module(module: str, levels: int) -> str | None:
    """diffusers' name of a module of the encoder or decoder; None for one that it does not have."""
    if module in _FIXED:
        return _FIXED[module]
    if match := _DOWN.match(module):
        level, block, leaf = match.groups()
        if block is None:
            return f"down_blocks.{level}.downsamplers.0.conv"
        return f"down_blocks.{level}.resnets.{block}.{_RESNET[leaf]}"
    if match := _UP.match(module):
        level, block, leaf = match.groups()
        # the decoder counts its levels from the full resolution, diffusers from the smallest
        up = f"up_blocks.{levels - 1 - int(level)}"
        return f"{up}.upsamplers.0.conv" if block is None else f"{up}.resnets.{block}.{_RESNET[leaf]}"
    if match := _MIDDLE.match(module):
        block, leaf, attention = match.groups()
        if block is None:
            return f"mid_block.attentions.0.{_ATTENTION[attention]}"
        return f"mid_block.resnets.{int(block) - 1}.{_RESNET[leaf]}"
    return None


def _places(infos: Infos) -> dict[str, list[Place]]:
    levels = _highest(infos, r"decoder\.up\.(\d+)\.") + 1
    places = {}
    for name, info in infos.items():
        side, _, rest = name.partition(".")
        module, _, leaf = rest.rpartition(".")
        found = diffusers_module(module, levels) if side in ("encoder", "decoder") else None
        if found is not None:
            # 1 x 1 convolutions there, linear layers here
            shape = info.shape[:2] if ".attentions.0.to_" in found and len(info.shape) == 4 else None
            places[name] = [Place(f"{side}.{found}.{leaf}", shape=shape)]
    return places


def _config(infos: Infos) -> dict[str, Any]:
    """diffusers' configuration; what the tensors do not tell is FLUX.1's.

    Source: vae/config.json of black-forest-labs/FLUX.1-dev and of Alpha-VLLM/Lumina-Image-2.0.
    """
    levels = _highest(infos, r"encoder\.down_blocks\.(\d+)\.") + 1
    widths = [_conv(infos, f"encoder.down_blocks.{level}.resnets.0.conv1.weight").shape[0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": _conv(infos, "encoder.conv_in.weight").shape[1],
        "out_channels": _conv(infos, "decoder.conv_out.weight").shape[0],
        "latent_channels": _conv(infos, "decoder.conv_in.weight").shape[1],
        "block_out_channels": widths,
        "layers_per_block": _highest(infos, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.") + 1,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
        "force_upcast": True,
        "sample_size": 1024,
    }


def _conv(infos: Infos, name: str) -> TensorInfo:
    if len(infos[name].shape) != 4:
        raise ValueError(f"{name} has shape {list(infos[name].shape)} and is no convolution")
    return infos[name]


def _highest(infos: Infos, pattern: str) -> int:
    return max(int(match[1]) for name in infos if (match := re.match(pattern, name)))


_PREFIXES = ("", "vae.", "first_stage_model.")

FLUX_VAE = SingleFiles(
    layouts=(
        Layout(
            # the original names
            _PREFIXES,
            ("decoder.mid.attn_1.q.weight", "encoder.conv_in.weight", "decoder.conv_in.weight"),
            _places,
        ),
        Layout(
            # diffusers' names
            _PREFIXES,
            ("decoder.mid_block.attentions.0.to_q.weight", "encoder.conv_in.weight", "decoder.conv_in.weight"),
            lambda infos: {},
        ),
    ),
    config=_config,
)
