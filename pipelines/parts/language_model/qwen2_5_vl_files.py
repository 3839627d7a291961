"""What files of Qwen2.5-VL look like for an encoder that sees pictures. Imports no torch."""

from __future__ import annotations

from .mmproj import QWEN2_5
from .seeing_files import SeeingFiles

QWEN2_5_VL_SEEING = SeeingFiles(
    title="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    # the encoder alone; ComfyUI's all-in-one checkpoints, and its node Save CLIP
    prefixes=("", "text_encoders.qwen25_7b.transformer.", "qwen25_7b.transformer."),
    # the repositories' and ComfyUI's files; transformers' own names since 4.52
    spellings=(("model.", "visual."), ("model.language_model.", "model.visual.")),
    kinds=("Qwen2.5-VL",),
    blind=("Qwen2.5", "Qwen2.5-VL"),
    example="qwen_2.5_vl_7b_fp8_scaled.safetensors",
    head=128,
    # config.json of Qwen/Qwen2.5-VL-7B-Instruct
    constants={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000,
        "attention_dropout": 0.0,
    },
    tower=QWEN2_5,
    tower_head=80,
    # its vision_config
    tower_constants={
        "hidden_act": "silu",
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    tower_rows={"intermediate_size": "blocks.0.mlp.gate_proj.weight", "out_hidden_size": "merger.mlp.2.weight"},
    tokenizer="tokenizer_json",  # ComfyUI's name of it, where a file has one
    final_norm=True,
)
