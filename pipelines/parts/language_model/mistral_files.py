"""What files of Mistral Small 3 look like, FLUX.2-dev's text encoder. Imports no torch."""

from __future__ import annotations

from .files import LanguageModelFiles


def mistral(layers: int) -> LanguageModelFiles:
    """Mistral Small 3.1, of which a model reads so many layers, see :class:`.files.LanguageModelFiles`."""
    return LanguageModelFiles(
        title="Mistral Small 3.1",
        model_type="mistral",
        # transformers' names of a whole model, old and new; ComfyUI's, alone, all in one and of its node Save CLIP; an
        # encoder alone
        prefixes=(
            "language_model.model.", "model.language_model.", "model.", "",
            "text_encoders.mistral3_24b.transformer.model.", "mistral3_24b.transformer.model.",
        ),
        kinds=("Mistral or Llama",),
        gguf_interleaved=True,
        head=128,
        # config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503
        constants={
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e9,
            "max_position_embeddings": 131072,
            "attention_bias": False,
        },
        foreign={"layers.0.self_attn.q_norm.weight": "it is Qwen3, and this model was trained with Mistral Small 3"},
        tokenizer="tekken_model",  # ComfyUI's name of it
        layers=layers,
    )  # fmt: skip
