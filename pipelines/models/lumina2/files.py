"""What files of Lumina Image 2.0's transformer look like, in original or diffusers names. Imports no torch.

The original names are those of Alpha-VLLM's release, which kohya's scripts, ComfyUI and GGUF files use. Any width is
read: the number of heads comes from the length of ``q_norm``, which is that of one head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...weights.layout import Infos, Layout, Place, SingleFiles

# original module -> diffusers' module; several: the rows of one weight, in this order
_TOP: Mapping[str, tuple[str, ...]] = {
    "x_embedder": ("x_embedder",),
    "t_embedder.mlp.0": ("time_caption_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_caption_embed.timestep_embedder.linear_2",),
    "cap_embedder.0": ("time_caption_embed.caption_embedder.0",),
    "cap_embedder.1": ("time_caption_embed.caption_embedder.1",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
    "final_layer.linear": ("norm_out.linear_2",),
}
_BLOCK: Mapping[str, tuple[str, ...]] = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": ("attn.to_out.0",),
    "attention.q_norm": ("attn.norm_q",),
    "attention.k_norm": ("attn.norm_k",),
    "feed_forward.w1": ("feed_forward.linear_1",),
    "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
    "ffn_norm1": ("ffn_norm1",),
    "ffn_norm2": ("ffn_norm2",),
    "attention_norm2": ("norm2",),
}
_MODULATED: Mapping[str, tuple[str, ...]] = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attention_norm1": ("norm1.norm",),
}
_PLAIN: Mapping[str, tuple[str, ...]] = {"attention_norm1": ("norm1",)}
_BLOCK_NAME = re.compile(r"(?:layers|noise_refiner|context_refiner)\.\d+\.")
_UNUSED = "norm_final.weight"  # in the release's file, but no forward reads it


def original_modules(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Original module -> diffusers' modules, for the blocks that occur in ``names``, of either kind."""
    blocks = {match[0] for name in names if (match := _BLOCK_NAME.match(name))}
    table = dict(_TOP)
    for block in sorted(blocks):
        own = _PLAIN if block.startswith("context_refiner") else _MODULATED
        for original, modules in {**_BLOCK, **own}.items():
            table[block + original] = tuple(block + module for module in modules)
    return table


def _original_places(infos: Infos) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {_UNUSED: []}
    for original, modules in original_modules(infos).items():
        for leaf in ("weight", "bias"):
            name = f"{original}.{leaf}"
            if name in infos:
                rows = [None] if len(modules) == 1 else _attention_rows(infos, original)
                places[name] = [Place(f"{m}.{leaf}", part) for m, part in zip(modules, rows, strict=True)]
    return places


def _attention_rows(infos: Infos, qkv: str) -> list[tuple[int, int]]:
    """Rows of query, key and value in a fused weight; keys and values may have fewer heads."""
    total = infos[f"{qkv}.weight"].shape[0]
    attention = qkv.rpartition(".")[0]
    queries = infos[f"{attention}.out.weight"].shape[1]
    keys, odd = divmod(total - queries, 2)
    if keys <= 0 or odd:
        raise ValueError(f"{qkv}.weight has {total} rows, of which {queries} are queries")
    return [(0, queries), (queries, queries + keys), (queries + keys, total)]


def _config(infos: Infos) -> dict[str, Any]:
    """diffusers' configuration; what the tensors do not tell is the release's.

    Source: the transformer/config.json of Alpha-VLLM/Lumina-Image-2.0.
    """
    hidden, per_patch = infos["x_embedder.weight"].shape
    head = infos["layers.0.attn.norm_q.weight"].shape[0]
    return {
        "_class_name": "Lumina2Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": per_patch // 4,
        "hidden_size": hidden,
        "num_layers": _count(infos, "layers"),
        "num_refiner_layers": _count(infos, "noise_refiner"),
        "num_attention_heads": infos["layers.0.attn.to_q.weight"].shape[0] // head,
        "num_kv_heads": infos["layers.0.attn.to_k.weight"].shape[0] // head,
        "multiple_of": 256,
        "ffn_dim_multiplier": None,
        "norm_eps": 1e-5,
        "scaling_factor": 1.0,
        "axes_dim_rope": [head // 3] * 3,
        "axes_lens": [300, 512, 512],
        "cap_feat_dim": infos["time_caption_embed.caption_embedder.1.weight"].shape[1],
    }


def _count(infos: Infos, blocks: str) -> int:
    return len({name.split(".")[1] for name in infos if name.startswith(f"{blocks}.")})


# ComfyUI's all-in-one checkpoints, and what other tools leave in front
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")

TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            # the original names
            _PREFIXES,
            # Z-Image shares most names, but its modulation is adaLN_modulation.0
            ("cap_embedder.1.weight", "layers.0.adaLN_modulation.1.weight", "layers.0.attention.qkv.weight"),
            _original_places,
        ),
        Layout(
            # diffusers' names
            _PREFIXES,
            ("time_caption_embed.caption_embedder.1.weight", "layers.0.norm1.linear.weight", "x_embedder.weight"),
            lambda infos: {},
        ),
    ),
    config=_config,
)
