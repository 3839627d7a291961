"""What files of Gemma 2 look like, Lumina Image 2.0's text encoder. Imports no torch."""

from __future__ import annotations

from .files import LanguageModelFiles

GEMMA2 = LanguageModelFiles(
    title="Gemma2 2B",
    model_type="gemma2",
    # transformers' names, an encoder alone, ComfyUI's all-in-one checkpoints, and its node Save CLIP
    prefixes=("model.", "", "text_encoders.gemma2_2b.transformer.model.", "gemma2_2b.transformer.model."),
    kinds=("Gemma 2",),
    # what layers have beside the common ones; the norm before the feed-forward has the common one's name
    gguf_names={
        "post_attention_norm.weight": "post_attention_layernorm",
        "ffn_norm.weight": "pre_feedforward_layernorm",
        "post_ffw_norm.weight": "post_feedforward_layernorm",
    },
    gguf_norm_shift=1.0,
    head=256,
    # config.json of google/gemma-2-2b
    constants={
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "attention_bias": False,
        "attention_dropout": 0.0,
    },
    signature=("layers.0.post_feedforward_layernorm.weight",),
    foreign={"layers.0.self_attn.q_norm.weight": "it is Gemma 3, and this model was trained with Gemma 2"},
    tokenizer="spiece_model",  # ComfyUI's name of it
    # LoRAs of the text encoder may change the last layer, which nobody reads
    final_norm=True,
)
