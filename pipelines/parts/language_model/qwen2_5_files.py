"""What files of Qwen2.5-VL's language model look like: 3B is OmniGen2's text encoder, 7B Qwen-Image's. Imports no
torch.
"""

from __future__ import annotations

from .files import LanguageModelFiles

QWEN2_5_VL = LanguageModelFiles(
    title="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    # transformers' names before and since 4.52, an encoder alone, ComfyUI's all-in-one checkpoints, and its node Save
    # CLIP
    prefixes=(
        "model.", "model.language_model.", "", "text_encoders.qwen25_3b.transformer.model.",
        "text_encoders.qwen25_7b.transformer.model.", "qwen25_3b.transformer.model.", "qwen25_7b.transformer.model.",
    ),
    kinds=("Qwen2.5-VL", "Qwen2.5"),
    gguf_names={"attn_q.bias": "self_attn.q_proj"},
    head=128,
    # config.json of Qwen/Qwen2.5-VL-3B-Instruct and of 7B
    constants={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 128000,
        "attention_dropout": 0.0,
    },
    signature=("layers.0.self_attn.q_proj.bias",),
    tokenizer="tokenizer_json",  # ComfyUI's name of it, where a file has one
    final_norm=True,
)  # fmt: skip
