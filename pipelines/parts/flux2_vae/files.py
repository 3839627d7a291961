"""What files of FLUX.2's autoencoder look like: ``ae.safetensors``, and diffusers'. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from ..flux_vae.files import diffusers_module

CLASS = "Flux2AutoEncoder"
_PREFIXES = ("", "vae.", "first_stage_model.")
_OUTSIDE = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
_ATTENTION = ("norm", "q", "k", "v", "proj_out")


def diffusers_names(levels: int, layers: int) -> dict[str, str]:
    """Released module -> diffusers' module, for encoder and decoder of as many levels and blocks of a level at most."""
    names = dict(_OUTSIDE)
    for side in ("encoder", "decoder"):
        for module in _modules(levels, layers):
            names[f"{side}.{module}"] = f"{side}.{diffusers_module(module, levels)}"
    return names


def _diffusers_places(infos: Infos) -> dict[str, list[Place]]:
    levels = 1 + _highest(infos, r"decoder\.up_blocks\.(\d+)\.")
    layers = 1 + _highest(infos, r"decoder\.up_blocks\.\d+\.resnets\.(\d+)\.")
    places: dict[str, list[Place]] = {}
    for own, theirs in diffusers_names(levels, layers).items():
        for leaf in ("weight", "bias"):
            name = f"{theirs}.{leaf}"
            if name in infos:
                shape = infos[name].shape
                # linear layers there, 1 x 1 convolutions here
                wide = (*shape, 1, 1) if ".attn_1." in own and len(shape) == 2 else None
                places[name] = [Place(f"{own}.{leaf}", shape=wide)]
    return places


def _modules(levels: int, layers: int) -> Iterator[str]:
    """Every module that an encoder or decoder may have."""
    yield from ("conv_in", "conv_out", "norm_out")
    yield from (f"mid.block_{block}.{leaf}" for block in (1, 2) for leaf in _RESNET)
    yield from (f"mid.attn_1.{leaf}" for leaf in _ATTENTION)
    for level in range(levels):
        yield from (f"down.{level}.downsample.conv", f"up.{level}.upsample.conv")
        for way in ("down", "up"):
            yield from (f"{way}.{level}.block.{layer}.{leaf}" for layer in range(layers) for leaf in _RESNET)


def _config(infos: Infos) -> dict[str, Any]:
    """The autoencoder's configuration, all of which its tensors tell."""
    down, up = (1 + _highest(infos, rf"{side}\.(\d+)\.") for side in (r"encoder\.down", r"decoder\.up"))
    return {
        "_class_name": CLASS,
        "in_channels": infos["encoder.conv_in.weight"].shape[1],
        "latent_channels": infos["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [infos[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(down)],
        "decoder_block_out_channels": [infos[f"decoder.up.{n}.block.0.conv1.weight"].shape[0] for n in range(up)],
        "layers_per_block": 1 + _highest(infos, r"encoder\.down\.0\.block\.(\d+)\."),
    }


def folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' ``vae/config.json`` in our keys; another class keeps its own, so that it can be named."""
    if config.get("_class_name") != "AutoencoderKLFlux2":
        return dict(config)
    keys = ("in_channels", "latent_channels", "block_out_channels", "layers_per_block")
    own = {key: config[key] for key in keys}
    # written since the small decoder
    widths = config.get("decoder_block_out_channels") or config["block_out_channels"]
    return {"_class_name": CLASS, **own, "decoder_block_out_channels": widths}


def _highest(infos: Infos, pattern: str) -> int:
    return max(int(match[1]) for name in infos if (match := re.match(pattern, name)))


FLUX2_VAE = SingleFiles(
    layouts=(
        Layout(
            _PREFIXES,
            ("bn.running_mean", "decoder.mid.attn_1.q.weight", "encoder.quant_conv.weight"),
            lambda infos: {},
        ),
        Layout(
            _PREFIXES,
            ("bn.running_mean", "decoder.mid_block.attentions.0.to_q.weight", "quant_conv.weight"),
            _diffusers_places,
        ),
    ),
    config=_config,
)
