"""What files of OmniGen2's transformer look like, in the released names. Imports no torch.

Any width is read: the number of heads comes from the length of ``norm_q``, which is that of one head.
"""

from __future__ import annotations

from typing import Any

from ...weights.layout import Infos, Layout, SingleFiles


def _transformer_config(infos: Infos) -> dict[str, Any]:
    """The transformer's configuration; what the tensors do not tell is the release's.

    Source: the transformer/config.json of OmniGen2/OmniGen2, whose values ComfyUI's model_detection.py has too.
    """
    hidden, per_patch = infos["x_embedder.weight"].shape
    head = infos["layers.0.attn.norm_q.weight"].shape[0]
    return {
        "_class_name": "OmniGen2Transformer2DModel",
        "patch_size": 2,
        "in_channels": per_patch // 4,
        "out_channels": None,
        "hidden_size": hidden,
        "num_layers": _count(infos, "layers"),
        "num_refiner_layers": _count(infos, "noise_refiner"),
        "num_attention_heads": infos["layers.0.attn.to_q.weight"].shape[0] // head,
        "num_kv_heads": infos["layers.0.attn.to_k.weight"].shape[0] // head,
        "multiple_of": 256,
        "ffn_dim_multiplier": None,
        "norm_eps": 1e-5,
        "axes_dim_rope": [head // 3] * 3,
        "axes_lens": [1024, 1664, 1664],
        "text_feat_dim": infos["time_caption_embed.caption_embedder.1.weight"].shape[1],
        "timestep_scale": 1000.0,
    }


def _count(infos: Infos, blocks: str) -> int:
    return len({name.split(".")[1] for name in infos if name.startswith(f"{blocks}.")})


TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            # ComfyUI's all-in-one checkpoints, and what other tools leave in front
            ("", "model.diffusion_model.", "diffusion_model.", "transformer."),
            ("ref_image_patch_embedder.weight", "layers.0.norm1.linear.weight", "x_embedder.weight"),
            lambda infos: {},
        ),
    ),
    config=_transformer_config,
)
