"""What files of Qwen-Image's transformer look like: diffusers' names in all of them. Imports no torch.

``qwen_image_bf16.safetensors`` and GGUF files have the names of the released folder. Any width is read: the number of
heads comes from the length of ``attn.norm_q``, which is that of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, SingleFiles

if TYPE_CHECKING:
    from ...files.header import Header

CLASS = "QwenImageTransformer2DModel"
# an empty tensor by which ComfyUI's files of Qwen-Image-Edit-2511 say what its configuration does: zero_cond_t
ZERO_TIME_MARKER = "__index_timestep_zero__"
_LAYERED = "time_text_embed.addition_t_embedding.weight"
LAYERED = "it is Qwen-Image-Layered, which this pack does not run"


def _config(infos: Infos) -> dict[str, Any]:
    """diffusers' configuration; what the tensors do not tell is the release's.

    Source: the class' own defaults, which are the released models'.
    """
    width, channels = infos["img_in.weight"].shape
    head = infos["transformer_blocks.0.attn.norm_q.weight"].shape[0]
    return {
        "_class_name": CLASS,
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": infos["proj_out.weight"].shape[0] // 4,
        "num_layers": len({name.split(".")[1] for name in infos if name.startswith("transformer_blocks.")}),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": infos["txt_in.weight"].shape[1],
        "guidance_embeds": False,
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],
        "zero_cond_t": ZERO_TIME_MARKER in infos,
    }


def folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's ``config.json``; those of the models before Qwen-Image-Edit-2511 do not have its setting."""
    return {"zero_cond_t": False, **config} if config.get("_class_name") == CLASS else dict(config)


def _stranger(header: Header) -> str:
    return LAYERED if any(name.endswith(_LAYERED) for name in header.tensors) else ""


TRANSFORMER = SingleFiles(
    layouts=(
        Layout(
            # ComfyUI's all-in-one checkpoints, and what other tools leave in front
            ("", "model.diffusion_model.", "diffusion_model.", "transformer."),
            ("txt_norm.weight", "img_in.weight", "transformer_blocks.0.img_mod.1.weight"),
            lambda infos: {},
        ),
    ),
    config=_config,
    stranger=_stranger,
)
