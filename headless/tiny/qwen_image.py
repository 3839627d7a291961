"""A tiny Qwen-Image in the folder layout of the released one and in ComfyUI's single files, and LoRAs for it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ...pipelines.models.qwen_image.files import ZERO_TIME_MARKER
from ...pipelines.models.qwen_image.recipes import TEMPLATE
from . import qwen2_5_tokenizer
from .containers import Quant, write_gguf_tensors
from .containers import write_gguf_text_encoder as write_llama_cpp
from .files import Tensors, read_part, write_tensors
from .qwen_image_vae import qwen_image_vae, wan_vae, write_wan_vae
from .spread import spread
from .toolkit_loras import LoKrOptions, LoRAOptions, write_lokr, write_lora

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

# Widths are tiny, and everything that tensors do not tell is as in the real model, so that single files of this one can
# be understood by the real one's constants: heads of 128 channels in both transformer and text encoder, and with them
# rotary axes of 16, 56 and 56. As in the real text encoder, heads of queries share one of keys and values.
_HEAD, _AXES = 128, (16, 56, 56)
_TEXT_HIDDEN, _TEXT_HEADS = 256, 2
_VOCABULARY = 1024  # more than the tokenizer has, as in the real one
# the first ids, in the order of Qwen2.5's
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_PROMPTS = ("a photo of a red fox in the snow, morning light", "a painting of a cat", "blurry, low quality")
_PREFIX = "model.diffusion_model."
_METADATA = {"format": "pt"}


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a checkpoint of about five megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        parts: dict[str, Any] = {
            "transformer": spread(transformer()),
            "text_encoder": spread(text_encoder()),
            "vae": spread(qwen_image_vae()),
        }
    finally:
        torch.set_rng_state(rng_state)
    for name, part in parts.items():
        # nn.Module.to: diffusers warns in its own about layers kept in float32, of which there are none
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)
    qwen2_5_tokenizer.write_tokenizer(folder / "tokenizer", make_tokenizer(), SPECIAL_TOKENS)
    scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "QwenImagePipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
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
    return write_lora(path, trained_layers(checkpoint, transformer_only), "qwen_image", "diffusion_model", **options)


def make_lokr(path: Path, checkpoint: Path, transformer_only: bool = True, **options: Unpack[LoKrOptions]) -> Path:
    """Writes a LoKr as AI Toolkit saves it; returns the path. Arguments as of :func:`make_lora`."""
    return write_lokr(path, trained_layers(checkpoint, transformer_only), "qwen_image", "diffusion_model", **options)


def trained_layers(checkpoint: Path, transformer_only: bool = True) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains.

    Args:
        checkpoint: the folder.
        transformer_only: AI Toolkit's ``network.transformer_only``. By default it trains the 14 layers of each block,
            and without it what stands around the blocks too.
    """
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in read_part(checkpoint, "transformer").items()
        if value.ndim == 2 and (name.startswith("transformer_blocks.") or not transformer_only)
    }


def write_single_transformer(path: Path, checkpoint: Path, prefix: str = "", *, zero_time: bool = False) -> Path:
    """The transformer as ``qwen_image_bf16.safetensors``: the folder's own names; returns the path.

    Args:
        path: the file.
        checkpoint: the folder whose weights it gets.
        prefix: in front of every name: files that ComfyUI saved have ``model.diffusion_model.``.
        zero_time: whether it has the empty tensor that ComfyUI's files of Qwen-Image-Edit-2511 have.
    """
    tensors = read_part(checkpoint, "transformer")
    if zero_time:
        tensors[ZERO_TIME_MARKER] = torch.empty(0, dtype=torch.bfloat16)
    return write_tensors(path, {prefix + name: value for name, value in tensors.items()}, _METADATA)


def write_single_text_encoder(path: Path, checkpoint: Path, *, new_names: bool = False) -> Path:
    """The text encoder as ``qwen_2.5_vl_7b.safetensors``: with head and vision tower, no tokenizer; returns the path.

    Args:
        path: the file.
        checkpoint: the folder whose weights it gets.
        new_names: those of transformers' modules since 4.52, which other tools save; else the released ones.
    """
    tensors = released_text_encoder(checkpoint)
    if new_names:
        tensors = {_new_name(name): value for name, value in tensors.items()}
    return write_tensors(path, tensors, _METADATA)


def write_single_files(target: Path, checkpoint: Path) -> tuple[Path, Path, Path]:
    """The checkpoint as ComfyUI has it: transformer, text encoder, autoencoder; returns the paths."""
    return (
        write_single_transformer(target / "qwen_image_bf16.safetensors", checkpoint),
        write_single_text_encoder(target / "qwen_2.5_vl_7b.safetensors", checkpoint),
        write_wan_vae(target / "qwen_image_vae.safetensors", checkpoint),
    )


def write_all_in_one(path: Path, checkpoint: Path) -> Path:
    """All parts in one file, as ComfyUI's node Save Checkpoint writes it; returns the path."""
    text_encoder = "text_encoders.qwen25_7b."
    parts = {
        _PREFIX: read_part(checkpoint, "transformer"),
        f"{text_encoder}transformer.": released_text_encoder(checkpoint),
        "vae.": wan_vae(read_part(checkpoint, "vae")),
    }
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    # ComfyUI keeps one for every text encoder; unused
    return write_tensors(path, tensors | {f"{text_encoder}logit_scale": torch.tensor(4.6055)}, _METADATA)


def write_float8(path: Path, plain: Path) -> Path:
    """A file's copy with every value cast to float8, norms and biases too, without scales; returns the path.

    ``qwen_image_fp8_e4m3fn.safetensors`` is so.
    """
    float8 = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(plain).items()}
    return write_tensors(path, float8, _METADATA)


def write_gguf(path: Path, checkpoint: Path, quant: Quant) -> Path:
    """The transformer as GGUF, in the folder's names; returns the path."""
    return write_gguf_tensors(path, read_part(checkpoint, "transformer"), quant, "qwen_image")


def write_gguf_text_encoder(path: Path, checkpoint: Path, quant: Quant) -> Path:
    """The language model as GGUF, in llama.cpp's names; the vision tower is a file of its own there."""
    tensors = {
        name.removeprefix("model."): value
        for name, value in released_text_encoder(checkpoint).items()
        if name.startswith("model.")
    }
    return write_llama_cpp(path, tensors, quant, "qwen2vl")


def released_text_encoder(checkpoint: Path) -> Tensors:
    """The text encoder in the released names, which not every transformers saves."""
    return {_released_name(name): value for name, value in read_part(checkpoint, "text_encoder").items()}


@lru_cache(maxsize=4)
def make_tokenizer(corpus: Sequence[str] = (TEMPLATE, *_PROMPTS)) -> Tokenizer:
    """A tokenizer that has the template's words, so that its head has 34 tokens as with the real one."""
    return qwen2_5_tokenizer.make_tokenizer(corpus, SPECIAL_TOKENS, _VOCABULARY)


def transformer(**change: Any) -> nn.Module:
    """A new transformer of two blocks; ``change`` goes into its configuration."""
    # diffusers annotates these tuples as having one element
    make: Any = QwenImageTransformer2DModel
    config = {
        "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": _HEAD,
        "num_attention_heads": 1, "joint_attention_dim": _TEXT_HIDDEN, "axes_dims_rope": _AXES,
    }  # fmt: skip
    return make(**config | change)


def text_encoder(**tower: Any) -> nn.Module:
    """A new Qwen2.5-VL of three layers, with a vision tower of one block and a head of its own.

    Args:
        tower: goes into the configuration of the vision tower.
    """
    text = {
        "vocab_size": _VOCABULARY, "hidden_size": _TEXT_HIDDEN, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": _TEXT_HEADS, "num_key_value_heads": 1, "hidden_act": "silu",
        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 1, "fullatt_block_indexes": [0], "hidden_act": "silu", "hidden_size": 32, "in_channels": 3,
        "intermediate_size": 64, "num_heads": 2, "out_hidden_size": _TEXT_HIDDEN, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    }  # fmt: skip
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start"}
    names |= {"vision_end_token_id": "vision_end"}
    # transformers takes more than its signature says
    ids: dict[str, Any] = {name: SPECIAL_TOKENS.index(f"<|{token}|>") for name, token in names.items()}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | tower, tie_word_embeddings=False, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The released configuration."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, num_train_timesteps=1000,
        shift=1.0, shift_terminal=0.02, time_shift_type="exponential", use_dynamic_shifting=True,
    )  # fmt: skip


def _released_name(name: str) -> str:
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def _new_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name
