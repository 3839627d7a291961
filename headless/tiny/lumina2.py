"""A tiny Lumina Image 2.0 in the folder layout of the released one, and a LoRA for it as AI Toolkit saves it."""

from __future__ import annotations

import json
from dataclasses import dataclass
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

_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")


@dataclass(frozen=True)
class Sizes:
    """What may differ from the released model: by default as little as its parts work with.

    Everything that tensors do not tell is as there, so that single files can be understood by the real one's constants:
    among them three rotary axes of equal, even size, 256 channels for each of Gemma2's heads, feed-forward layers of a
    multiple of 256, and 32 groups in the autoencoder's norms. GGUF's blocks want rows of 32, which with the rotary axes
    makes 96 the smallest width.

    Attributes:
        hidden: width of the transformer; 2304 in the released one.
        heads: of its attention; 24 there.
        kv_heads: of its keys and values; 8 there.
        layers: main blocks; 26 there.
        refiners: blocks of each of its two refiners; 2 there.
        text_hidden: width of the text encoder; 2304 there.
        text_layers: its layers; 26 there.
    """

    hidden: int = 96
    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    refiners: int = 1
    text_hidden: int = 32
    text_layers: int = 3


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, sizes: Sizes = Sizes()) -> Path:
    """Writes a checkpoint, by default one of three megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
        sizes: of its networks.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        tokenizer = make_tokenizer()
        parts: dict[str, Any] = {
            "transformer": _transformer(sizes),
            "text_encoder": _text_encoder(len(tokenizer), sizes),
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


def _transformer(sizes: Sizes) -> nn.Module:
    axis = sizes.hidden // sizes.heads // 3
    model = Lumina2Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        hidden_size=sizes.hidden,
        num_layers=sizes.layers,
        num_refiner_layers=sizes.refiners,
        num_attention_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        multiple_of=256,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(axis, axis, axis),
        axes_lens=(300, 512, 512),
        cap_feat_dim=sizes.text_hidden,
    )
    return spread(model)


def _text_encoder(vocabulary: int, sizes: Sizes) -> nn.Module:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=sizes.text_hidden,
        intermediate_size=64,
        num_hidden_layers=sizes.text_layers,
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
