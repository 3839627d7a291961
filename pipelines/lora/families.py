"""Tells for which model a LoRA file was made, so that a stray file can be named.

Models of the catalogue state their own signature; the table adds models that this pack does not run. Each row lists
fragments that must all occur in some key of the file; the first row that fits wins, the
catalogue's own before the table's, and special ones before general ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..files.header import Header

# key fragments as written by AI Toolkit, diffusers, kohya and ComfyUI
_SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("FLUX.2", ("single_transformer_blocks", "to_qkv_mlp_proj")),
    ("FLUX.1", ("single_transformer_blocks",)),
    ("FLUX.1", ("double_blocks", "img_mod")),
    ("FLUX.1", ("lora_unet_double_blocks",)),
    ("FLUX.2 or FLUX.1", ("double_blocks", "img_attn")),
    ("Chroma", ("distilled_guidance_layer",)),
    ("Qwen-Image", ("transformer_blocks", "img_mlp")),
    ("HiDream", ("double_stream_blocks",)),
    ("Stable Diffusion 3", ("joint_blocks",)),
    ("Stable Diffusion 3", ("transformer_blocks", "add_q_proj")),
    ("Wan", ("blocks.", "cross_attn", "self_attn")),
    ("LTX-Video", ("transformer_blocks", "attn1.to_q", "scale_shift_table")),
    ("Z-Image", ("layers.", "attention.to_q")),
    ("Z-Image", ("layers.", "adaLN_modulation.0")),
    ("Z-Image", ("layers_", "adaLN_modulation_0")),
    ("Lumina Image 2.0 in original names (kohya)", ("lora_unet_layers", "attention_qkv")),
    ("Lumina Image 2.0 in original names (ComfyUI)", ("layers.", "attention.qkv")),
    ("OmniGen2", ("diffusion_model.", "layers.", "feed_forward.linear_1")),
    ("SDXL", ("lora_te2_",)),
    ("SDXL", ("lora_unet_input_blocks_4_1_transformer_blocks_1",)),
    ("SDXL", ("add_embedding",)),
    ("Stable Diffusion 1 or 2, or SDXL", ("lora_unet_down_blocks",)),
    ("Stable Diffusion 1 or 2, or SDXL", ("unet.down_blocks",)),
    ("PixArt or another transformer with attn1/attn2", ("transformer_blocks", "attn1")),
)


def recognise(header: Header, metadata: Mapping[str, str]) -> str | None:
    """The model that a file looks like, and what ``ss_base_model_version`` says; None where neither tells."""
    from ..models import catalogue

    keys = list(header.tensors)
    own = [(model.title, tuple(model.lora.signature)) for model in catalogue().values()]
    titles = [
        title
        for title, fragments in (*own, *_SIGNATURES)
        if all(any(fragment in key for key in keys) for fragment in fragments)
    ]
    version = metadata.get("ss_base_model_version")
    if version:
        return f"{titles[0]} (its metadata says {version!r})" if titles else repr(version)
    return titles[0] if titles else None


def trained_on(metadata: Mapping[str, str]) -> str | None:
    """The model of the catalogue that AI Toolkit's metadata name; None where they name none of them."""
    from ..models import catalogue

    model = catalogue().get(metadata.get("ss_base_model_version", ""))
    return None if model is None else model.title
