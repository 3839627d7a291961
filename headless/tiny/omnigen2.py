"""A tiny OmniGen2 in the folder layout of the released one and in ComfyUI's single files, and a LoRA for it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from safetensors import safe_open
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from ...pipelines.models.omnigen2.network import OmniGen2Transformer2DModel
from ...pipelines.models.omnigen2.recipes import SYSTEM_PROMPT
from . import qwen2_5_tokenizer
from .files import read_part, write_tensors
from .flux1_vae import flux1_vae
from .names import original_ae
from .spread import spread
from .toolkit_loras import LoRAOptions, write_lora

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Widths are tiny, and everything that tensors do not tell is as in the real model, so that single files of this one can
# be understood by the real one's constants: among them three rotary axes of equal, even size, 128 channels for each of
# Qwen's heads, feed-forward layers of a multiple of 256, and 32 groups in the autoencoder's norms. As in the real
# model, three heads of queries share one of keys and values.
_HIDDEN, _HEADS, _KV_HEADS = 144, 3, 1
_AXIS = _HIDDEN // _HEADS // 3
_TEXT_HIDDEN, _TEXT_HEADS = 256, 2
_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")
# the first ids, in the order of Qwen2.5's
_SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<|img|>",
)  # fmt: skip
_CORPUS = (f"system\n{SYSTEM_PROMPT}\nuser\n", "a photo of a red fox in the snow, morning light", "keep the cat")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a checkpoint of about ten megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
    """
    tokenizer = make_tokenizer()
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        transformer, vae = spread(_transformer()), spread(flux1_vae())
        language = spread(_language_model(tokenizer.get_vocab_size()))
        vision = {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in _vision_shapes().items()}
    finally:
        torch.set_rng_state(rng_state)
    for name, part in (("transformer", transformer), ("vae", vae)):
        # nn.Module.to: diffusers warns in its own about layers kept in float32, of which there are none
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)  # pyright: ignore[reportCallIssue]
    tensors = {f"model.{name}": value for name, value in language.state_dict().items()} | vision
    write_tensors(
        folder / "mllm" / "model.safetensors",
        {name: value.to(dtype) for name, value in tensors.items()},
        {"format": "pt"},
    )
    _write_json(folder / "mllm" / "config.json", _mllm_config(tokenizer.get_vocab_size()))
    _write_processor(folder / "processor", tokenizer)
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "dynamic_time_shift": True},
    )
    index = {
        "_class_name": "OmniGen2Pipeline",
        "_diffusers_version": "0.33.1",
        "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "processor": ["transformers", "Qwen2_5_VLProcessor"],
        "scheduler": ["scheduling_flow_match_euler_discrete_time_shifting", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def make_lora(path: Path, checkpoint: Path, **options: Unpack[LoRAOptions]) -> Path:
    """Writes a LoRA as AI Toolkit saves it, for all layers that it trains by default; returns the path.

    Args:
        path: the file.
        checkpoint: the folder that it fits.
        options: see :class:`LoRAOptions`.
    """
    return write_lora(path, trained_layers(checkpoint), "omnigen2", "diffusion_model", **options)


def trained_layers(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains by default; the reference images' are not among."""
    layers: dict[str, tuple[int, int]] = {}
    with safe_open(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            shape = file.get_slice(name).get_shape()
            if name.startswith(_BLOCKS) and len(shape) == 2:
                layers[name.removesuffix(".weight")] = (shape[0], shape[1])
    return layers


def write_single_files(target: Path, folder: Path) -> tuple[Path, Path, Path]:
    """The checkpoint as ComfyUI has it: transformer, text encoder with tokenizer, autoencoder; returns the paths."""
    metadata = {"format": "pt"}
    words = torch.frombuffer(bytearray((folder / "processor" / "tokenizer.json").read_bytes()), dtype=torch.uint8)
    encoder = read_part(folder, "mllm")
    # lm_head is stored there although it is the table of embeddings
    encoder |= {"lm_head.weight": encoder["model.embed_tokens.weight"], "tokenizer_json": words}
    return (
        write_tensors(target / "omnigen2_fp16.safetensors", read_part(folder, "transformer"), metadata),
        write_tensors(target / "qwen_2.5_vl_fp16.safetensors", encoder, metadata),
        write_tensors(target / "ae.safetensors", original_ae(read_part(folder, "vae")), metadata),
    )


@lru_cache(maxsize=1)
def make_tokenizer() -> Tokenizer:
    """A byte-level BPE with Qwen2.5's special tokens, word pattern and normalisation, the same at every call."""
    return qwen2_5_tokenizer.make_tokenizer(_CORPUS, _SPECIAL_TOKENS, 480)


def _write_processor(folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    config = {
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(_SPECIAL_TOKENS[1:]),
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": 131072,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    _write_json(folder / "tokenizer_config.json", config)
    image_processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
    }
    _write_json(folder / "preprocessor_config.json", image_processor)


def _mllm_config(vocabulary: int) -> dict[str, Any]:
    """In the shape that Qwen2.5-VL was released with: the language model's keys at the top."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_language_config(vocabulary),
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "image_token_id": 6,
        "video_token_id": 7,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "vision_config": {
            "depth": 1,
            "fullatt_block_indexes": [0],
            "hidden_act": "silu",
            "hidden_size": 32,
            "in_chans": 3,
            "intermediate_size": 64,
            "model_type": "qwen2_5_vl",
            "num_heads": 2,
            "out_hidden_size": _TEXT_HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def _language_config(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": _TEXT_HIDDEN,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": _TEXT_HEADS,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _language_model(vocabulary: int) -> nn.Module:
    return Qwen2Model(Qwen2Config(**_language_config(vocabulary)))


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    """The vision tower's tensors, which a text encoder has and nothing here reads."""
    block = {
        "attn.proj": (32, 32), "attn.qkv": (96, 32), "mlp.down_proj": (32, 64), "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (32, 3, 2, 14, 14)}
    for layer, shape in block.items():
        shapes[f"visual.blocks.0.{layer}.weight"] = shape
        shapes[f"visual.blocks.0.{layer}.bias"] = shape[:1]
    shapes |= {f"visual.blocks.0.norm{number}.weight": (32,) for number in (1, 2)}
    merger = {"mlp.0": (128, 128), "mlp.2": (_TEXT_HIDDEN, 128)}
    for layer, shape in merger.items():
        shapes[f"visual.merger.{layer}.weight"] = shape
        shapes[f"visual.merger.{layer}.bias"] = shape[:1]
    return shapes | {"visual.merger.ln_q.weight": (32,)}


def _transformer() -> nn.Module:
    return OmniGen2Transformer2DModel(
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
        axes_dim_rope=(_AXIS, _AXIS, _AXIS),
        axes_lens=(1024, 1664, 1664),
        text_feat_dim=_TEXT_HIDDEN,
        timestep_scale=1000.0,
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
