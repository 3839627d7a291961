"""The tiny models' weights in the single files that people have: the same values under other names, or in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gguf
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

from .files import Tensors, read_part, write_tensors
from .names import original_ae, original_dit
from .q4_k import BLOCK, quantize_q4_k
from .tokenizer import make_sentencepiece

if TYPE_CHECKING:
    import numpy as np

Quant = Literal["Q4_0", "Q8_0", "Q4_K", "BF16"]
Spelling = Literal["old", "new", "metadata"]

METADATA = {"format": "pt"}
_FILE_TYPES = {
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
_E4M3 = "float8_e4m3fn"
_HEAD = 128  # channels of a head of Mistral, also of the tiny one
_LLAMA_CPP = {
    "embed_tokens": "token_embd", "norm": "output_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_LLAMA_CPP_GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
BLOCKS = (
    "blk.", "layers.", "noise_refiner.", "context_refiner.", "double_blocks.", "single_blocks.", "transformer_blocks.",
    "blocks.", "txtfusion.",
)  # fmt: skip


def write_dit(path: Path, folder: Path, prefix: str = "") -> Path:
    """The transformer in original names, as the Lumina release and kohya's scripts have it; returns the path.

    Args:
        path: the file.
        folder: the diffusers folder whose weights it gets.
        prefix: in front of every name.
    """
    return write_tensors(path, _prefixed(prefix, original_dit(read_part(folder, "transformer"))), METADATA)


def write_gemma2(path: Path, folder: Path) -> Path:
    """The text encoder with its tokenizer inside, as ComfyUI's ``gemma_2_2b_fp16.safetensors``; returns the path."""
    tensors = _prefixed("model.", read_part(folder, "text_encoder"))
    return write_tensors(path, tensors | {"spiece_model": _sentencepiece()}, METADATA)


def write_ae(path: Path, folder: Path) -> Path:
    """The autoencoder in FLUX.1's names, as ``ae.safetensors``; returns the path."""
    return write_tensors(path, original_ae(read_part(folder, "vae")), METADATA)


def write_all_in_one(path: Path, folder: Path) -> Path:
    """All parts in ComfyUI's checkpoint layout; returns the path."""
    text_encoder = "text_encoders.gemma2_2b."
    tensors = {
        **_prefixed("model.diffusion_model.", original_dit(read_part(folder, "transformer"))),
        **_prefixed("vae.", original_ae(read_part(folder, "vae"))),
        **_prefixed(f"{text_encoder}transformer.model.", read_part(folder, "text_encoder")),
        f"{text_encoder}logit_scale": torch.tensor(4.6055),  # ComfyUI keeps one for every text encoder; unused
        "text_encoders.spiece_model": _sentencepiece(),
    }
    return write_tensors(path, tensors, METADATA)


def write_pth(path: Path, folder: Path) -> Path:
    """The transformer as a pickled dict of original names, like ``consolidated.00-of-01.pth``; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(original_dit(read_part(folder, "transformer")), path)
    return path


def write_gguf(path: Path, folder: Path, quant: Quant, names: Literal["original", "diffusers"] = "original") -> Path:
    """The transformer as GGUF, with what converters leave unquantised left so; returns the path.

    Args:
        path: the file.
        folder: the diffusers folder whose weights it gets.
        quant: of the weights inside the blocks of layers; those whose rows do not fill Q4_K's blocks get Q8_0, and
            those whose rows do not fill blocks of 32 stay F16.
        names: of the tensors.
    """
    tensors = read_part(folder, "transformer")
    return write_gguf_tensors(path, original_dit(tensors) if names == "original" else tensors, quant, "lumina2")


def write_gguf_tensors(path: Path, tensors: Tensors, quant: Quant, architecture: str) -> Path:
    """Tensors as GGUF, likewise; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_FILE_TYPES[quant])
    for name, value in tensors.items():
        kind = _kind(name, value, quant)
        writer.add_tensor(name, _quantized(value.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_text_encoder(path: Path, tensors: Tensors, quant: Quant, architecture: str) -> Path:
    """A language model in llama.cpp's names, as its converter writes it; returns the path.

    Args:
        path: the file.
        tensors: in transformers' names, without what stands before ``layers``.
        quant: of the matrices in its layers.
        architecture: llama.cpp's name: ``llama`` for Mistral, ``qwen3``, ``qwen2vl``, ``gemma2``.
    """
    named: Tensors = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        layer, _, inner = module.removeprefix("layers.").partition(".")
        names = _LLAMA_CPP | (_LLAMA_CPP_GEMMA if architecture == "gemma2" else {})
        own = f"blk.{layer}.{names[inner]}" if inner else names[module]
        if architecture == "llama" and inner.endswith(("q_proj", "k_proj")):
            # llama.cpp turns neighbouring channels where transformers turns those of the two halves of a head
            value = value.reshape(-1, 2, _HEAD // 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if architecture == "gemma2" and module.endswith("norm"):
            value = value.float() + 1
        named[f"{own}.{leaf}"] = value
    return write_gguf_tensors(path, named, quant, architecture)


def write_scaled_float8(path: Path, plain: Path, spelling: Spelling, prefix: str = "", dtype: str = _E4M3) -> Path:
    """A file's copy with scaled float8 weights in its blocks, a third of them left as they are; returns the path.

    Args:
        path: the file.
        plain: a safetensors file of one part.
        spelling: of ComfyUI's three: ``scaled_fp8``, ``comfy_quant``, or the metadata (without the prefix).
        prefix: what the file's names begin with.
        dtype: ``float8_e4m3fn`` or ``float8_e5m2``.
    """
    scale_name, input_name = ("scale_weight", "scale_input") if spelling == "old" else ("weight_scale", "input_scale")
    tensors, described = load_file(plain), {}
    chosen = [name for name, value in tensors.items() if value.ndim == 2 and any(block in name for block in BLOCKS)]
    float8 = getattr(torch, dtype)
    for index, name in enumerate(chosen):
        if index % 3 == 2:
            continue
        layer, value = name.removesuffix(".weight"), tensors[name].float()
        scale = value.abs().max() / torch.finfo(float8).max
        tensors |= {name: (value / scale).to(float8), f"{layer}.{scale_name}": scale}
        if index % 2:
            tensors[f"{layer}.{input_name}"] = torch.tensor(0.5)
        described[layer] = {"format": dtype}
    metadata = dict(METADATA)
    if spelling == "old":
        tensors[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=float8)
    elif spelling == "new":
        for layer, said in described.items():
            text = bytearray(json.dumps(said).encode())
            tensors[f"{layer}.comfy_quant"] = torch.frombuffer(text, dtype=torch.uint8)
    else:
        layers = {layer.removeprefix(prefix): said for layer, said in described.items()}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return write_tensors(path, tensors, metadata)


def _kind(name: str, value: torch.Tensor, quant: Quant) -> GGMLQuantizationType:
    if value.ndim < 2:
        return GGMLQuantizationType.F32
    if quant == "BF16":
        return GGMLQuantizationType.BF16
    if not name.startswith(BLOCKS) or value.shape[-1] % 32:
        return GGMLQuantizationType.F16
    if quant == "Q4_K" and value.shape[-1] % BLOCK:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[quant]


def _quantized(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    return quantize_q4_k(values) if kind == GGMLQuantizationType.Q4_K else gguf.quants.quantize(values, kind)


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _sentencepiece() -> torch.Tensor:
    """uint8 of (bytes of the model)."""
    return torch.frombuffer(bytearray(make_sentencepiece()), dtype=torch.uint8)
