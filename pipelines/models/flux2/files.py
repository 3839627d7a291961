"""What files of FLUX.2 look like: the transformer in released or diffusers names. Imports no torch.

The released names are those of ``flux2-dev.safetensors``, which AI Toolkit, ComfyUI and GGUF files use. Any width is
read: the number of heads comes from the length of a ``query_norm``, which is that of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from .names import diffusers_modules

if TYPE_CHECKING:
    from ...weights.pieces import Piece

# ComfyUI's all-in-one checkpoints, and what other tools leave in front
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
CLASS = "Flux2Transformer"


def _released_places(infos: Infos) -> dict[str, list[Place]]:
    # ComfyUI saves the norms of queries and keys with its own name for the scale
    return {name: [Place(scale)] for name in infos if (scale := _scale(name)) != name}


def _scale(name: str) -> str:
    for norm in ("query_norm", "key_norm"):
        if name.endswith(f".{norm}.weight"):
            return name.removesuffix("weight") + "scale"
    return name


def _diffusers_places(infos: Infos) -> dict[str, list[Place]]:
    table = diffusers_modules(infos)
    places: dict[str, list[Place]] = {}
    for name, info in infos.items():
        module, _, leaf = name.rpartition(".")
        if module in table:
            places[name] = _pieces(table[module], leaf, info.shape[0])
    return places


def _pieces(pieces: tuple[Piece, ...], leaf: str, rows: int) -> list[Place]:
    """Where the pieces of one stored tensor go, from its first row on."""
    if len(pieces) == 1 and pieces[0].whole:
        return [Place(_scale(f"{pieces[0].module}.{leaf}"))]
    height, rest = divmod(rows, len(pieces))
    if rest:
        raise ValueError(f"the {rows} rows for {pieces[0].module} are not {len(pieces)} equal shares")
    places = []
    for index, piece in enumerate(pieces):
        total = height * piece.share[1]
        own = (index * height, (index + 1) * height) if len(pieces) > 1 else None
        places.append(Place(f"{piece.module}.{leaf}", own, into=(*piece.rows(total), total)))
    return places


def _config(infos: Infos) -> dict[str, Any]:
    """The transformer's configuration; what the tensors do not tell is the release's.

    Source: AI Toolkit flux2/src/model.py, Flux2Params.
    """
    hidden, channels = infos["img_in.weight"].shape
    head = infos["single_blocks.0.norm.query_norm.scale"].shape[0]
    return {
        "_class_name": CLASS,
        "in_channels": channels,
        "context_in_dim": infos["txt_in.weight"].shape[1],
        "hidden_size": hidden,
        "num_heads": hidden // head,
        "depth": _count(infos, "double_blocks"),
        "depth_single_blocks": _count(infos, "single_blocks"),
        "axes_dim": [head // 4] * 4,
        "theta": 2000,
        "mlp_ratio": (infos["single_blocks.0.linear2.weight"].shape[1] - hidden) / hidden,
        "guidance_embed": "guidance_in.in_layer.weight" in infos,
    }


def _count(infos: Infos, blocks: str) -> int:
    return len({name.split(".")[1] for name in infos if name.startswith(f"{blocks}.")})


def folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' ``transformer/config.json`` in our keys; another class keeps its own, so that it can be named."""
    if config.get("_class_name") != "Flux2Transformer2DModel":
        return dict(config)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        "_class_name": CLASS,
        "in_channels": config["in_channels"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": width,
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": config["axes_dims_rope"],
        "theta": config["rope_theta"],
        "mlp_ratio": config["mlp_ratio"],
        # written since klein; before it every model had one
        "guidance_embed": config.get("guidance_embeds", True),
    }


TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            _PREFIXES,
            # FLUX.1's blocks have a modulation each
            ("single_stream_modulation.lin.weight", "double_blocks.0.img_attn.qkv.weight", "txt_in.weight"),
            _released_places,
        ),
        Layout(
            _PREFIXES,
            (
                "single_stream_modulation.linear.weight",
                "transformer_blocks.0.attn.to_q.weight",
                "context_embedder.weight",
            ),
            _diffusers_places,
        ),
    ),
    config=_config,
)
