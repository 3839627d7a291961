"""The names that a folder's tensors have in single files: Lumina's original ones, and the FLUX.1 autoencoder's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .files import Tensors

# diffusers' module -> the original one
_OUTSIDE = {
    "x_embedder": "x_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder.0": "cap_embedder.0",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
_IN_BLOCKS = {
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm1": "attention_norm1",  # in the context refiner, which is not modulated
    "norm1.norm": "attention_norm1",
    "norm1.linear": "adaLN_modulation.1",
    "norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")  # one weight in the original, in this order of rows
_BLOCK = re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+)\.(.+)")

_AE_OUTSIDE = {"conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out"}
_AE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_module(module: str) -> str:
    """The original name of a module of diffusers' transformer; queries, keys and values have the same one."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    match = _BLOCK.fullmatch(module)
    if match is None:
        raise ValueError(f"{module!r} is no module of Lumina2's transformer.")
    block, part = match.groups()
    return f"{block}.attention.qkv" if part in QKV else f"{block}.{_IN_BLOCKS[part]}"


def original_dit(tensors: Tensors) -> Tensors:
    """diffusers' transformer in original names: queries, keys and values are one weight, of (q + k + v, width)."""
    original: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith(QKV[1:]):
            continue
        if module.endswith(QKV[0]):
            attention = name.removesuffix(f"{QKV[0]}.{leaf}")
            value = torch.cat([tensors[f"{attention}{part}.{leaf}"] for part in QKV])
        original[f"{original_module(module)}.{leaf}"] = value
    # the release has it, and nothing reads it: other values than ones, so that whoever does is found out
    norm = original["layers.0.attention_norm1.weight"]
    original["norm_final.weight"] = torch.linspace(2.0, 3.0, len(norm)).to(norm.dtype)
    return original


def original_ae(tensors: Tensors) -> Tensors:
    """diffusers' autoencoder in FLUX.1's names: decoder levels in reverse, attention as convolutions (c, c, 1, 1)."""
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down_blocks."))
    original: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        convolution = ".attentions.0.to_" in module and value.ndim == 2
        original[f"{_ae_module(module, levels)}.{leaf}"] = value[:, :, None, None] if convolution else value
    return original


def _ae_module(module: str, levels: int) -> str:
    side, _, rest = module.partition(".")
    first, *path = rest.split(".", 3)
    if first in _AE_OUTSIDE:
        return f"{side}.{_AE_OUTSIDE[first]}"
    if first == "mid_block":
        kind, index, leaf = path
        return (
            f"{side}.mid.{f'block_{int(index) + 1}.{leaf}' if kind == 'resnets' else f'attn_1.{_AE_ATTENTION[leaf]}'}"
        )
    level, kind, rest = path
    index, _, leaf = rest.partition(".")
    if first == "up_blocks":
        return f"{side}.up.{levels - 1 - int(level)}.{_ae_part(kind, index, leaf, 'upsample')}"
    return f"{side}.down.{level}.{_ae_part(kind, index, leaf, 'downsample')}"


def _ae_part(kind: str, index: str, leaf: str, sampler: str) -> str:
    if kind != "resnets":
        return f"{sampler}.{leaf}"
    return f"block.{index}.{'nin_shortcut' if leaf == 'conv_shortcut' else leaf}"
