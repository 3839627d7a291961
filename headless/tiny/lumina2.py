"""A tiny Lumina Image 2.0 in the folder layout of the released one, and a LoRA for it as AI Toolkit saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from safetensors import safe_open
from torch import nn
from transformers import Gemma2Config, Gemma2Model

from .flux1_vae import flux1_vae
from .spread import spread
from .tokenizer import make_tokenizer
from .toolkit_loras import LoRAOptions, write_lora

# Widths are tiny, and everything that tensors do not tell is as in the real model, so that single files of this one can
# be understood by the real one's constants: among them three rotary axes of equal, even size, 256 channels for each of
# Gemma2's heads, feed-forward layers of a multiple of 256, and 32 groups in the autoencoder's norms.
# GGUF's blocks want rows of 32, which with the rotary axes makes 96 the smallest width.
_HIDDEN, _HEADS, _KV_HEADS = 96, 4, 2
_AXIS = _HIDDEN // _HEADS // 3
_TEXT_HIDDEN = 32
_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a checkpoint of three megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        tokenizer = make_tokenizer()
        parts: dict[str, Any] = {
            "transformer": _transformer(),
            "text_encoder": _text_encoder(len(tokenizer)),
            "vae": spread(flux1_vae()),
        }
    finally:
        torch.set_rng_state(rng_state)
    for name, part in parts.items():
        # nn.Module.to: diffusers warns in its own about layers kept in float32, of which there are none
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=6.0).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Lumina2Pipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "Lumina2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_lora(path: Path, checkpoint: Path, **options: Unpack[LoRAOptions]) -> Path:
    """Writes a LoRA as AI Toolkit saves it, for all layers that it trains by default; returns the path.

    Args:
        path: the file.
        checkpoint: the folder that it fits.
        options: see :class:`LoRAOptions`.
    """
    return write_lora(path, trained_layers(checkpoint), "lumina2", "transformer", **options)


def trained_layers(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains by default: every Linear of the blocks."""
    layers: dict[str, tuple[int, int]] = {}
    with safe_open(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            shape = file.get_slice(name).get_shape()
            if name.startswith(_BLOCKS) and len(shape) == 2:
                layers[name.removesuffix(".weight")] = (shape[0], shape[1])
    return layers


def _transformer() -> nn.Module:
    model = Lumina2Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        hidden_size=_HIDDEN,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        multiple_of=256,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(_AXIS, _AXIS, _AXIS),
        axes_lens=(300, 512, 512),
        cap_feat_dim=_TEXT_HIDDEN,
    )
    return spread(model)


def _text_encoder(vocabulary: int) -> nn.Module:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=_TEXT_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=8192,
        sliding_window=4096,
        rms_norm_eps=1e-6,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return spread(Gemma2Model(config))
