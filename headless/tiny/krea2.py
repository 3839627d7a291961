"""A tiny Krea 2 in the released layout, in diffusers' and in ComfyUI's single files, and LoRAs for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from ...pipelines.models.krea2.network import Krea2Transformer
from ...pipelines.models.krea2.recipes import AFTER, BEFORE, STATES
from .containers import Quant, write_gguf_tensors
from .files import Tensors, read_part, write_tensors
from .qwen3_vl import HIDDEN, qwen3_vl, write_qwen3_vl_tokenizer
from .qwen_image_vae import qwen_image_vae, wan_vae
from .spread import spread
from .toolkit_loras import LoKrOptions, LoRAOptions, write_lokr, write_lora

RAW = "raw.safetensors"
# heads of 128 channels, and with them rotary axes of 32, 48 and 48, as in the real one; two heads of queries share one
# of keys and values, and the rows of all layers fill Q4_K's blocks
_HEAD, _HEADS, _KV_HEADS = 128, 2, 1
_WIDTH, _MLP, _LAYERS, _TIME, _TEXT_MLP = _HEAD * _HEADS, 256, 2, 256, 128
_METADATA = {"format": "pt"}
# released module -> diffusers'
_OUTSIDE = {
    "first": "img_in", "tmlp.0": "time_embed.linear_1", "tmlp.2": "time_embed.linear_2", "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1", "txtmlp.3": "txt_in.linear_2", "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
}  # fmt: skip
_OUTSIDE_SCALES = {"txtmlp.0": "txt_in.norm", "last.norm": "final_layer.norm"}
_IN_BLOCKS = {
    "attn.wq": "attn.to_q", "attn.wk": "attn.to_k", "attn.wv": "attn.to_v", "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate", "attn.qknorm.qnorm": "attn.norm_q", "attn.qknorm.knorm": "attn.norm_k",
    "mlp.gate": "ff.gate", "mlp.up": "ff.up", "mlp.down": "ff.down", "prenorm": "norm1", "postnorm": "norm2",
}  # fmt: skip
_BLOCK = re.compile(r"(blocks|txtfusion\.(?:layerwise|refiner)_blocks)\.(\d+)\.(.+)")


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a checkpoint of seven megabytes, with the transformer as ``raw.safetensors``; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        transformer = spread(_transformer())
        parts: dict[str, Any] = {"text_encoder": spread(qwen3_vl()), "vae": spread(qwen_image_vae())}
    finally:
        torch.set_rng_state(rng_state)
    tensors = {name: value.detach().to(dtype) for name, value in transformer.state_dict().items()}
    write_tensors(folder / RAW, tensors, _METADATA)
    for name, part in parts.items():
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)
    write_qwen3_vl_tokenizer(folder / "tokenizer", BEFORE + AFTER)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Krea2Pipeline",
        "_diffusers_version": "0.40.0",
        "is_distilled": False,
        "patch_size": 2,
        "text_encoder_select_layers": list(STATES),
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3VLModel"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "Krea2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_lora(path: Path, checkpoint: Path, transformer_only: bool = True, **options: Unpack[LoRAOptions]) -> Path:
    """Writes a LoRA as AI Toolkit saves it; returns the path.

    Args:
        path: the file.
        checkpoint: the folder that it fits.
        transformer_only: see :func:`trained_layers`.
        options: see :class:`LoRAOptions`.
    """
    return write_lora(path, trained_layers(checkpoint, transformer_only), "krea2", "diffusion_model", **options)


def make_lokr(path: Path, checkpoint: Path, transformer_only: bool = True, **options: Unpack[LoKrOptions]) -> Path:
    """Writes a LoKr as AI Toolkit saves it; returns the path. Arguments as of :func:`make_lora`."""
    return write_lokr(path, trained_layers(checkpoint, transformer_only), "krea2", "diffusion_model", **options)


def trained_layers(checkpoint: Path, transformer_only: bool = True) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains.

    Args:
        checkpoint: the folder.
        transformer_only: AI Toolkit's ``network.transformer_only``. By default it trains what has ``blocks`` in its
            name, those that fuse the text's states too, and all linear layers without it.
    """
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in released(checkpoint).items()
        if name.endswith(".weight") and value.ndim == 2 and ("blocks" in name or not transformer_only)
    }


def released(checkpoint: Path) -> Tensors:
    """The transformer of a folder in the released names."""
    from safetensors.torch import load_file

    return load_file(checkpoint / RAW)


def write_diffusers_transformer(folder: Path, checkpoint: Path) -> Path:
    """The transformer in diffusers' layout, ``transformer/`` of a folder; returns the folder.

    Args:
        folder: which gets it.
        checkpoint: the folder whose weights it gets.
    """
    tensors = diffusers_transformer(released(checkpoint))
    write_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, _METADATA)
    config = {
        "_class_name": "Krea2Transformer2DModel",
        "_diffusers_version": "0.40.0",
        "attention_head_dim": _HEAD,
        "axes_dims_rope": [32, 48, 48],
        "in_channels": 64,
        "intermediate_size": _MLP,
        "norm_eps": 1e-5,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "num_layers": _LAYERS,
        "num_layerwise_text_blocks": 2,
        "num_refiner_text_blocks": 2,
        "num_text_layers": len(STATES),
        "rope_theta": 1000.0,
        "text_hidden_dim": HIDDEN,
        "text_intermediate_size": _TEXT_MLP,
        "text_num_attention_heads": 1,
        "text_num_key_value_heads": 1,
        "timestep_embed_dim": _TIME,
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def diffusers_transformer(tensors: Tensors) -> Tensors:
    """The transformer in diffusers' names: the six vectors of a block's modulation lie in rows."""
    found: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        match = _BLOCK.fullmatch(module)
        if name == "last.modulation.lin":
            found["final_layer.scale_shift_table"] = value
        elif match is None:
            found[f"{_OUTSIDE.get(module) or _OUTSIDE_SCALES[module]}.{_leaf(leaf)}"] = value
        else:
            block = match[1].replace("txtfusion", "text_fusion") if "." in match[1] else "transformer_blocks"
            own = f"{block}.{match[2]}"
            if match[3] == "mod":
                found[f"{own}.scale_shift_table"] = value.reshape(6, -1)
            else:
                found[f"{own}.{_IN_BLOCKS[match[3]]}.{_leaf(leaf)}"] = value
    return found


def write_single_transformer(path: Path, checkpoint: Path, prefix: str = "", stray: bool = False) -> Path:
    """The transformer as ``krea2_raw_bf16.safetensors``; returns the path.

    Args:
        path: the file.
        checkpoint: the folder whose weights it gets.
        prefix: in front of every name: files that ComfyUI saved have ``model.diffusion_model.``.
        stray: whether it has two tensors that no forward reads, as some quantised sets do.
    """
    tensors = released(checkpoint)
    if stray:
        tensors |= {f"last.{name}.weight": torch.full((4, _WIDTH), torch.nan) for name in ("down", "up")}
    return write_tensors(path, {prefix + name: value for name, value in tensors.items()}, _METADATA)


def write_single_text_encoder(path: Path, checkpoint: Path) -> Path:
    """The text encoder as ``qwen3vl_4b_bf16.safetensors``; returns the path."""
    return write_tensors(path, comfy_text_encoder(read_part(checkpoint, "text_encoder")), _METADATA)


def comfy_text_encoder(tensors: Tensors) -> Tensors:
    """transformers' whole model in ComfyUI's names: a language model under ``model.``, a tower under ``visual.``."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for name, value in tensors.items()
    }


def language_model(checkpoint: Path) -> Tensors:
    """The language model's tensors, without what stands before ``layers``."""
    prefix = "model.language_model."
    found = read_part(checkpoint, "text_encoder").items()
    return {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}


def write_all_in_one(path: Path, checkpoint: Path) -> Path:
    """All parts in one file, as ComfyUI's node Save Checkpoint writes it; returns the path."""
    text_encoder = "text_encoders.qwen3vl_4b.transformer."
    parts = {
        "model.diffusion_model.": released(checkpoint),
        text_encoder: comfy_text_encoder(read_part(checkpoint, "text_encoder")),
        "vae.": wan_vae(read_part(checkpoint, "vae")),
    }
    return write_tensors(
        path, {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}, _METADATA
    )


def write_gguf(path: Path, checkpoint: Path, quant: Quant) -> Path:
    """The transformer as GGUF in released names; returns the path."""
    return write_gguf_tensors(path, released(checkpoint), quant, "krea2")


def _leaf(leaf: str) -> str:
    return "weight" if leaf == "scale" else leaf


def _transformer() -> nn.Module:
    return Krea2Transformer(
        width=_WIDTH,
        heads=_HEADS,
        kv_heads=_KV_HEADS,
        mlp=_MLP,
        layers=_LAYERS,
        time_width=_TIME,
        text_width=HIDDEN,
        text_heads=1,
        text_kv_heads=1,
        text_mlp=_TEXT_MLP,
        text_states=len(STATES),
    )
