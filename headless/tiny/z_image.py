"""A tiny Z-Image in the folder layout of the released one and in ComfyUI's single files, and LoRAs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from .containers import Quant, write_ae, write_gguf_tensors
from .files import Tensors, read_part, write_tensors
from .flux1_vae import flux1_vae
from .names import original_ae
from .qwen3_tokenizer import write_qwen3_tokenizer
from .spread import spread
from .toolkit_loras import LoKrOptions, LoRAOptions, write_lokr, write_lora

# Widths are tiny, and everything that tensors do not tell is as in the real model, so that single files of this one can
# be understood by the real one's constants: heads of 128 channels in both transformer and text encoder, and with them
# rotary axes of 32, 48 and 48. As in the real text encoder, heads of queries share one of keys and values.
_HEAD, _AXES = 128, (32, 48, 48)
_TEXT_HIDDEN, _TEXT_HEADS, _TEXT_KV_HEADS = 32, 2, 1
_VOCABULARY = 512  # more than the tokenizer has, as in the real one

# diffusers' module -> the original one; blocks' parts from the second table
_OUTSIDE = {"all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1": "final_layer"}
_IN_BLOCKS = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
}
_QKV = ("attention.to_q", "attention.to_k", "attention.to_v")  # one weight in the original, in this order of rows
_PAD_TOKENS = ("x_pad_token", "cap_pad_token")
_PREFIX = "model.diffusion_model."
_METADATA = {"format": "pt"}


class Oddities(TypedDict, total=False):
    """In what transformer files of the world differ from the released one; False by default.

    Attributes:
        flat_pad_tokens: both are (dim,) in place of (1, dim), as stable-diffusion.cpp's GGUF files have them.
        norm_final: a weight that nothing reads, with values that were never written: NaN and 1e30. Older versions of
            ComfyUI saved it with fine-tunes.
    """

    flat_pad_tokens: bool
    norm_final: bool


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, heads: int = 1) -> Path:
    """Writes a checkpoint of four megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
        heads: of the transformer, each of 128 channels. With one or two the rows of ``feed_forward.w2`` are 341 or 682
            long, which fills no block of GGUF; with three all rows fill blocks of 32, and Q4_K's of 256 too where they
            are 256 or 1024 long. That checkpoint has 20 megabytes.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        parts: dict[str, Any] = {
            "transformer": spread(_transformer(heads)),
            "text_encoder": spread(_text_encoder()),
            "vae": spread(flux1_vae()),
        }
    finally:
        torch.set_rng_state(rng_state)
    for name, part in parts.items():
        # nn.Module.to: diffusers warns in its own about layers kept in float32, of which there are none
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)
    write_qwen3_tokenizer(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
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
    return write_lora(path, trained_layers(checkpoint, transformer_only), "zimage", "diffusion_model", **options)


def make_lokr(path: Path, checkpoint: Path, transformer_only: bool = True, **options: Unpack[LoKrOptions]) -> Path:
    """Writes a LoKr as AI Toolkit saves it; returns the path. Arguments as of :func:`make_lora`."""
    return write_lokr(path, trained_layers(checkpoint, transformer_only), "zimage", "diffusion_model", **options)


def trained_layers(checkpoint: Path, transformer_only: bool = True) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains.

    Args:
        checkpoint: the folder.
        transformer_only: AI Toolkit's ``network.transformer_only``. By default it trains ``layers``, and the refiners
            and embedders without it.
    """
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in read_part(checkpoint, "transformer").items()
        if value.ndim == 2 and name not in _PAD_TOKENS and (name.startswith("layers.") or not transformer_only)
    }


def original_transformer(tensors: Tensors, **oddities: Unpack[Oddities]) -> Tensors:
    """diffusers' transformer in original names: queries, keys and values are one weight, of (3 * dim, dim)."""
    original: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith(_QKV[1:]):
            continue
        if module.endswith(_QKV[0]):
            attention = module.removesuffix(_QKV[0])
            value = torch.cat([tensors[f"{attention}{part}.{leaf}"] for part in _QKV])
        if name in _PAD_TOKENS and oddities.get("flat_pad_tokens"):
            value = value[0]
        original[_original_name(name)] = value
    if oddities.get("norm_final"):
        dim = original["x_pad_token"].shape[-1]
        original["norm_final.weight"] = torch.tensor([torch.nan, 1e30]).repeat(dim // 2).to(original["x_pad_token"])
    return original


def write_single_transformer(path: Path, checkpoint: Path, prefix: str = "", **oddities: Unpack[Oddities]) -> Path:
    """The transformer in original names, as ``z_image_turbo_bf16.safetensors``; returns the path.

    Args:
        path: the file.
        checkpoint: the folder whose weights it gets.
        prefix: in front of every name: files that ComfyUI saved have ``model.diffusion_model.``.
        oddities: see :class:`Oddities`.
    """
    tensors = original_transformer(read_part(checkpoint, "transformer"), **oddities)
    return write_tensors(path, {prefix + name: value for name, value in tensors.items()}, _METADATA)


def write_single_text_encoder(path: Path, checkpoint: Path) -> Path:
    """The text encoder as ``qwen_3_4b.safetensors``: transformers' names, no head, no tokenizer; returns the path."""
    return write_tensors(path, read_part(checkpoint, "text_encoder"), _METADATA)


def write_single_files(target: Path, checkpoint: Path) -> tuple[Path, Path, Path]:
    """The checkpoint as ComfyUI has it: transformer, text encoder, autoencoder; returns the paths."""
    return (
        write_single_transformer(target / "z_image_turbo_bf16.safetensors", checkpoint),
        write_single_text_encoder(target / "qwen_3_4b.safetensors", checkpoint),
        write_ae(target / "ae.safetensors", checkpoint),
    )


def write_all_in_one(path: Path, checkpoint: Path, **oddities: Unpack[Oddities]) -> Path:
    """All parts in one file, as ComfyUI's node Save Checkpoint writes it; returns the path."""
    text_encoder = "text_encoders.qwen3_4b."
    parts = {
        _PREFIX: original_transformer(read_part(checkpoint, "transformer"), **oddities),
        f"{text_encoder}transformer.": read_part(checkpoint, "text_encoder"),
        "vae.": original_ae(read_part(checkpoint, "vae")),
    }
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    # ComfyUI keeps one for every text encoder; unused
    return write_tensors(path, tensors | {f"{text_encoder}logit_scale": torch.tensor(4.6055)}, _METADATA)


def write_gguf(path: Path, checkpoint: Path, quant: Quant, **oddities: Unpack[Oddities]) -> Path:
    """The transformer as GGUF in original names, whose architecture is called ``lumina2``; returns the path."""
    tensors = original_transformer(read_part(checkpoint, "transformer"), **oddities)
    return write_gguf_tensors(path, tensors, quant, "lumina2")


def _original_name(name: str) -> str:
    for theirs, original in _OUTSIDE.items():
        if name.startswith(f"{theirs}."):
            return original + name.removeprefix(theirs)
    module, _, leaf = name.rpartition(".")
    for theirs, original in (_IN_BLOCKS | {_QKV[0]: "attention.qkv"}).items():
        if module.endswith(f".{theirs}"):
            return f"{module.removesuffix(theirs)}{original}.{leaf}"
    return name


def _transformer(heads: int) -> nn.Module:
    # diffusers annotates these tuples as having one element, and these lists as having none
    make: Any = ZImageTransformer2DModel
    return make(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=heads * _HEAD,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=_TEXT_HIDDEN,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=list(_AXES),
        axes_lens=[1536, 512, 512],
    )


def _text_encoder() -> nn.Module:
    # a dict: transformers takes more than its signature says
    config: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
        "hidden_size": _TEXT_HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": _TEXT_HEADS,
        "num_key_value_heads": _TEXT_KV_HEADS,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    }
    return Qwen3ForCausalLM(Qwen3Config(**config))
