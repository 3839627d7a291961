"""Qwen-Image's autoencoder as a single file, ``qwen_image_vae.safetensors`` in Wan's names, or in diffusers'.

Both networks are the same, so that nothing tells a file of Wan 2.1's autoencoder from one of Qwen-Image's. Imports no
torch.
"""

from __future__ import annotations

import re
from typing import Any

from ...weights.layout import Infos, Layout, Place, SingleFiles

CLASS = "AutoencoderKLQwenImage"
# the means and deviations of the latents' channels, which no tensor holds: vae/config.json of Qwen/Qwen-Image
LATENTS_MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
                -0.1922, -0.9497, 0.2503, -0.2921]  # fmt: skip
LATENTS_STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
               1.1253, 2.8251, 1.9160]  # fmt: skip
_PREFIXES = ("", "vae.", "first_stage_model.")
# Wan's module -> diffusers'
_OUTSIDE = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_SIDE = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_RESNET = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_FLAT = re.compile(r"(?:down|up)samples\.(\d+)\.(.+)")


def diffusers_module(module: str, blocks: int) -> str | None:
    """diffusers' name of a module in Wan's naming; None for one that it does not have.

    Args:
        module: e.g. ``decoder.upsamples.3.time_conv``.
        blocks: of each level of the decoder, without the one that enlarges.
    """
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    side, _, inside = module.partition(".")
    if side not in ("encoder", "decoder"):
        return None
    if inside in _SIDE:
        return f"{side}.{_SIDE[inside]}"
    if inside.startswith("middle."):
        number, _, leaf = inside.removeprefix("middle.").partition(".")
        found = leaf if number == "1" else _RESNET.get(leaf)
        return f"{side}.mid_block.{_MIDDLE[number]}.{found}" if number in _MIDDLE and found else None
    match = _FLAT.fullmatch(inside)
    if match is None:
        return None
    index, leaf = int(match[1]), _RESNET.get(match[2], match[2])
    if side == "encoder":
        # a flat list there, too
        return f"encoder.down_blocks.{index}.{leaf}"
    level, place = divmod(index, blocks + 1)
    kind = "upsamplers.0" if place == blocks else f"resnets.{place}"
    return f"decoder.up_blocks.{level}.{kind}.{leaf}"


def _wan_places(infos: Infos) -> dict[str, list[Place]]:
    # the first enlargement follows the blocks of its level; there is none in a decoder of one level
    larger = [int(match[1]) for name in infos if (match := re.match(r"decoder\.upsamples\.(\d+)\.resample\.", name))]
    if not larger:
        raise ValueError("its decoder has no block that enlarges")
    places = {}
    for name in infos:
        module, _, leaf = name.rpartition(".")
        found = diffusers_module(module, min(larger))
        if found is not None:
            places[name] = [Place(f"{found}.{leaf}")]
    return places


def _config(infos: Infos) -> dict[str, Any]:
    """diffusers' configuration; what the tensors do not tell is the release's."""
    width = infos["encoder.conv_in.weight"].shape[0]
    down = 1 + _highest(infos, r"encoder\.down_blocks\.(\d+)\.")
    smaller = [n for n in range(down) if f"encoder.down_blocks.{n}.resample.1.weight" in infos]
    # the last block before each of them, and the last of all, has its level's width
    widths = [infos[f"encoder.down_blocks.{n - 1}.conv2.weight"].shape[0] for n in (*smaller, down)]
    return {
        "_class_name": CLASS,
        "base_dim": width,
        "z_dim": infos["decoder.conv_in.weight"].shape[1],
        "dim_mult": [one // width for one in widths],
        "num_res_blocks": _highest(infos, r"decoder\.up_blocks\.0\.resnets\.(\d+)\."),
        "attn_scales": [],
        "temperal_downsample": [f"encoder.down_blocks.{n}.time_conv.weight" in infos for n in smaller],
        "dropout": 0.0,
        "input_channels": infos["encoder.conv_in.weight"].shape[1],
        "latents_mean": LATENTS_MEAN,
        "latents_std": LATENTS_STD,
    }


def _highest(infos: Infos, pattern: str) -> int:
    return max(int(match[1]) for name in infos if (match := re.match(pattern, name)))


QWEN_IMAGE_VAE = SingleFiles(
    layouts=(
        Layout(
            _PREFIXES,
            # Wan 2.2's autoencoder has its blocks a step deeper, decoder.upsamples.0.upsamples.0
            ("encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "decoder.upsamples.0.residual.2.weight"),
            _wan_places,
        ),
        Layout(
            _PREFIXES,
            ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
            lambda infos: {},
        ),
    ),
    config=_config,
)
