"""What files of Qwen3-VL's language model look like, Krea 2's text encoder. Imports no torch."""

from __future__ import annotations

from .files import LanguageModelFiles


def qwen3_vl(layers: int | None = None) -> LanguageModelFiles:
    """Qwen3-VL, of which a model reads so many layers, see :class:`.files.LanguageModelFiles`."""
    return LanguageModelFiles(
        title="Qwen3-VL",
        model_type="qwen3_vl",
        # transformers' names of a whole model; ComfyUI's, an encoder alone, all in one and of its node Save CLIP
        prefixes=(
            "model.language_model.", "language_model.model.", "language_model.", "model.", "",
            "text_encoders.qwen3vl_4b.transformer.model.", "qwen3vl_4b.transformer.model.",
        ),
        # whose tower tells it from Qwen3, which has the same layers and other weights
        kinds=("Qwen3-VL",),
        gguf_names={"attn_q_norm.weight": "self_attn.q_norm"},
        head=128,
        # text_config of the config.json of Qwen/Qwen3-VL-4B-Instruct
        constants={
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "max_position_embeddings": 262144,
            "attention_bias": False,
        },
        signature=("layers.0.self_attn.q_norm.weight",),
        layers=layers,
    )  # fmt: skip
