"""What files of Qwen3 look like; FLUX.2-klein and Z-Image have it as text encoder. Imports no torch."""

from __future__ import annotations

from .files import LanguageModelFiles

# config.json of Qwen/Qwen3-4B and Qwen/Qwen3-8B
_CONSTANTS = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "sliding_window": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    "use_sliding_window": False,
}


def qwen3(layers: int | None = None) -> LanguageModelFiles:
    """Qwen3, of which a model reads so many layers, see :class:`.files.LanguageModelFiles`."""
    return LanguageModelFiles(
        title="Qwen3",
        model_type="qwen3",
        # transformers' names of a whole model, an encoder alone, ComfyUI's all-in-one checkpoints, and its node Save
        # CLIP
        prefixes=(
            "model.", "", "text_encoders.qwen3_4b.transformer.model.", "text_encoders.qwen3_8b.transformer.model.",
            "qwen3_4b.transformer.model.", "qwen3_8b.transformer.model.",
        ),
        kinds=("Qwen3",),
        gguf_names={"attn_q_norm.weight": "self_attn.q_norm"},
        head=128,
        constants=_CONSTANTS,
        signature=("layers.0.self_attn.q_norm.weight",),
        layers=layers,
    )  # fmt: skip
