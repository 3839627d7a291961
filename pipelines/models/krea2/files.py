"""What files of Krea 2's transformer look like, in released or diffusers names. Imports no torch.

The released names are those of ``raw.safetensors``, which AI Toolkit, ComfyUI and GGUF files use. Any width is read:
the number of heads comes from the length of a norm of queries, which is that of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from .names import released_module

CLASS, DIFFUSERS_CLASS = "Krea2Transformer", "Krea2Transformer2DModel"
PATCH = 2  # latent pixels a side of a token
TEXT_BLOCKS = 2  # of each kind
_THETA = 1000.0
# ComfyUI's all-in-one checkpoints, and what other tools leave in front
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
_STRAY = ("last.down.weight", "last.up.weight")  # some quantised sets have them, and no forward reads them


def _diffusers_places(infos: Infos) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for name, info in infos.items():
        module, _, leaf = name.rpartition(".")
        alone, own = released_module(name), released_module(module)
        if alone is not None:
            # the six vectors of a block lie in one row after the other; those of the last layer do in both
            flat = (info.shape[0] * info.shape[1],) if alone.endswith("mod.lin") and len(info.shape) == 2 else None
            places[name] = [Place(alone, shape=flat)]
        elif own is not None:
            places[name] = [Place(f"{own}.{'scale' if 'norm' in module.rpartition('.')[2] else leaf}")]
    return places


def _config(infos: Infos) -> dict[str, Any]:
    """The transformer's configuration; what the tensors do not tell is the release's.

    Source: AI Toolkit krea2/src/mmdit.py, SingleMMDiTConfig.
    """
    width, per_token = infos["first.weight"].shape
    text = "txtfusion.layerwise_blocks.0"
    head, text_head = (infos[f"{block}.attn.qknorm.qnorm.scale"].shape[0] for block in ("blocks.0", text))
    return {
        "_class_name": CLASS,
        "channels": per_token // PATCH**2,
        "width": width,
        "heads": infos["blocks.0.attn.wq.weight"].shape[0] // head,
        "kv_heads": infos["blocks.0.attn.wk.weight"].shape[0] // head,
        "mlp": infos["blocks.0.mlp.gate.weight"].shape[0],
        "layers": len({name.split(".")[1] for name in infos if name.startswith("blocks.")}),
        "time_width": infos["tmlp.0.weight"].shape[1],
        "text_width": infos["txtmlp.1.weight"].shape[1],
        "text_heads": infos[f"{text}.attn.wq.weight"].shape[0] // text_head,
        "text_kv_heads": infos[f"{text}.attn.wk.weight"].shape[0] // text_head,
        "text_mlp": infos[f"{text}.mlp.gate.weight"].shape[0],
        "text_states": infos["txtfusion.projector.weight"].shape[1],
        "theta": _THETA,
    }


def folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' ``transformer/config.json`` in our keys; another class keeps its own, so that it can be named."""
    if config.get("_class_name") != DIFFUSERS_CLASS:
        return dict(config)
    return {
        "_class_name": CLASS,
        "channels": config["in_channels"] // PATCH**2,
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "mlp": config["intermediate_size"],
        "layers": config["num_layers"],
        "time_width": config["timestep_embed_dim"],
        "text_width": config["text_hidden_dim"],
        "text_heads": config["text_num_attention_heads"],
        "text_kv_heads": config["text_num_key_value_heads"],
        "text_mlp": config["text_intermediate_size"],
        "text_states": config["num_text_layers"],
        "theta": config["rope_theta"],
    }


TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            _PREFIXES,
            ("txtfusion.projector.weight", "blocks.0.attn.wq.weight", "first.weight"),
            lambda infos: {name: [] for name in _STRAY},
        ),
        Layout(
            _PREFIXES,
            ("text_fusion.projector.weight", "transformer_blocks.0.attn.to_q.weight", "img_in.weight"),
            _diffusers_places,
        ),
    ),
    config=_config,
)
