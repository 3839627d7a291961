"""Which language model a file holds, by its names: files of several kinds have the same layers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...files.header import Header

# general.architecture of a GGUF file; llama.cpp calls Mistral's layers llama's
_ARCHITECTURES = {
    "llama": "Mistral or Llama", "mistral3": "Mistral or Llama", "qwen2": "Qwen2.5", "qwen2vl": "Qwen2.5-VL",
    "qwen3": "Qwen3", "qwen3vl": "Qwen3-VL", "qwen3moe": "Qwen3 with experts", "gemma": "Gemma", "gemma2": "Gemma 2",
    "gemma3": "Gemma 3", "gemma3n": "Gemma 3n", "t5": "T5", "t5encoder": "T5", "clip": "a vision tower (mmproj)",
    "phi3": "Phi-3", "glm4": "GLM-4", "gpt-oss": "gpt-oss",
}  # fmt: skip
_QUERY = "layers.0.self_attn.q_proj.weight"
_SEEING = ("visual.", "vision_tower.", "vision_model.")


def kind_of(header: Header) -> str | None:
    """For people, e.g. ``Qwen3-VL``; None where the names tell nothing."""
    architecture = header.metadata.get("general.architecture")
    if architecture is not None and "token_embd.weight" in header.tensors:
        return _ARCHITECTURES.get(architecture)
    names = header.tensors
    query = next((name for name in names if name.endswith(_QUERY)), None)
    if query is None:
        return "T5" if any(name.endswith("block.0.layer.0.SelfAttention.q.weight") for name in names) else None
    start = query.removesuffix(_QUERY)
    if start.endswith("encoder.") and "text_model" in start:
        return "CLIP"
    # a vision tower beside it, under the same first step
    top = start.removesuffix("language_model.").removesuffix("model.")
    sees = any(name.startswith((*(top + part for part in _SEEING), *(f"{top}model.{part}" for part in _SEEING)))
               for name in names)  # fmt: skip
    layer = f"{start}layers.0."
    if f"{layer}pre_feedforward_layernorm.weight" in names:
        return "Gemma 3" if f"{layer}self_attn.q_norm.weight" in names else "Gemma 2"
    if f"{layer}self_attn.q_norm.weight" in names:
        return "Qwen3-VL" if sees else "Qwen3"
    if f"{layer}self_attn.q_proj.bias" in names:
        return "Qwen2.5-VL" if sees else "Qwen2.5"
    return "Mistral or Llama"
