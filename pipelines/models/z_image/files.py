"""What files of Z-Image's transformer look like, in original or diffusers names. Imports no torch.

The original names are those of ``z_image_turbo_bf16.safetensors``, which ComfyUI and GGUF files use. Any width is read:
the number of heads comes from the length of ``q_norm``, which is that of one head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from ...weights.pieces import Piece

CLASS = "ZImageTransformer2DModel"
# ComfyUI's all-in-one checkpoints, and what other tools leave in front
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
# original -> diffusers; what is not here has one name
_TOP = {"x_embedder": "all_x_embedder.2-1", "final_layer": "all_final_layer.2-1"}
_BLOCK = {"attention.out": "attention.to_out.0", "attention.q_norm": "attention.norm_q"}
_BLOCK |= {"attention.k_norm": "attention.norm_k"}
_QKV, _SPLIT = "attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v")  # rows in this order, in thirds
_BLOCK_NAME = re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+)\.(.+)")
_PAD_TOKENS = ("x_pad_token", "cap_pad_token")
_UNUSED = "norm_final.weight"  # some tools save it, with values that were never written


def original_modules(modules: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """Original module -> the pieces of diffusers' modules that it holds, for these modules of diffusers."""
    top = {own: original for original, own in _TOP.items()}
    inside = {own: original for original, own in _BLOCK.items()}
    found: dict[str, tuple[Piece, ...]] = {}
    for module in modules:
        match = _BLOCK_NAME.fullmatch(module)
        if match is None:
            outer = next((own for own in top if module == own or module.startswith(f"{own}.")), None)
            found[module if outer is None else top[outer] + module.removeprefix(outer)] = (Piece(module),)
        elif match[2] in _SPLIT:
            found[f"{match[1]}.{_QKV}"] = tuple(Piece(f"{match[1]}.{split}") for split in _SPLIT)
        else:
            found[f"{match[1]}.{inside.get(match[2], match[2])}"] = (Piece(module),)
    return found


def _original_places(infos: Infos) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {_UNUSED: []}
    for name, info in infos.items():
        module, _, leaf = name.rpartition(".")
        match = _BLOCK_NAME.fullmatch(module)
        if name in _PAD_TOKENS:
            # GGUF files of some tools have them without the first axis
            places[name] = [Place(name, shape=(1, *info.shape) if len(info.shape) == 1 else None)]
        elif match is None:
            outer = next((original for original in _TOP if module.startswith(original)), None)
            if outer is not None:
                places[name] = [Place(f"{_TOP[outer]}{module.removeprefix(outer)}.{leaf}")]
        elif match[2] == _QKV:
            height, rest = divmod(info.shape[0], len(_SPLIT))
            if rest:
                raise ValueError(f"{name} has {info.shape[0]} rows, which are not three equal shares")
            places[name] = [
                Place(f"{match[1]}.{split}.{leaf}", (index * height, (index + 1) * height))
                for index, split in enumerate(_SPLIT)
            ]
        elif match[2] in _BLOCK:
            places[name] = [Place(f"{match[1]}.{_BLOCK[match[2]]}.{leaf}")]
    return places


def _config(infos: Infos) -> dict[str, Any]:
    """diffusers' configuration; what the tensors do not tell is the release's.

    Source: the transformer/config.json of Tongyi-MAI/Z-Image-Turbo; a head's channels are shared out as there.
    """
    width, per_patch = infos["all_x_embedder.2-1.weight"].shape
    head = infos["layers.0.attention.norm_q.weight"].shape[0]
    heads = width // head
    return {
        "_class_name": CLASS,
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": per_patch // 4,
        "dim": width,
        "n_layers": _count(infos, "layers"),
        "n_refiner_layers": _count(infos, "noise_refiner"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": infos["cap_embedder.1.weight"].shape[1],
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [head // 4, head * 3 // 8, head * 3 // 8],
        "axes_lens": [1536, 512, 512],
    }


def _count(infos: Infos, blocks: str) -> int:
    return len({name.split(".")[1] for name in infos if name.startswith(f"{blocks}.")})


TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            _PREFIXES,
            # Lumina Image 2.0 shares most names, but its modulation is adaLN_modulation.1
            ("cap_embedder.1.weight", "layers.0.adaLN_modulation.0.weight", "layers.0.attention.qkv.weight"),
            _original_places,
        ),
        Layout(
            _PREFIXES,
            ("cap_embedder.1.weight", "layers.0.adaLN_modulation.0.weight", "layers.0.attention.to_q.weight"),
            lambda infos: {_UNUSED: []},
        ),
    ),
    config=_config,
)
