"""What files of Qwen3-VL look like for an encoder that sees pictures. Imports no torch."""

from __future__ import annotations

from .mmproj import QWEN3
from .qwen3_vl_files import qwen3_vl
from .seeing_files import SeeingFiles


def seeing_qwen3_vl(layers: int | None = None) -> SeeingFiles:
    """Qwen3-VL, of whose language model so many layers are read, see :class:`.files.LanguageModelFiles`."""
    plain = qwen3_vl(layers)
    return SeeingFiles(
        title=plain.title,
        model_type=plain.model_type,
        # ComfyUI's all-in-one checkpoints, and its node Save CLIP
        prefixes=("", "text_encoders.qwen3vl_4b.transformer.", "qwen3vl_4b.transformer."),
        # ComfyUI's files; transformers'; a folder's as it is read
        spellings=(("model.", "visual."), ("model.language_model.", "model.visual."), ("language_model.", "visual.")),
        kinds=plain.kinds,
        # a safetensors file without a tower is like Qwen3
        blind=plain.kinds,
        example="qwen3vl_4b_bf16.safetensors",
        head=plain.head,
        constants={**plain.constants, "rope_scaling": {"mrope_section": [24, 20, 20]}},
        tower=QWEN3,
        tower_head=64,
        # vision_config of Qwen/Qwen3-VL-4B-Instruct
        tower_constants={
            "hidden_act": "gelu_pytorch_tanh",
            "spatial_merge_size": 2,
            "deepstack_visual_indexes": list(QWEN3.deep_behind),
        },
        tower_rows={
            "intermediate_size": "blocks.0.mlp.linear_fc1.weight",
            "out_hidden_size": "merger.linear_fc2.weight",
            "num_position_embeddings": "pos_embed.weight",
        },
        layers=layers,
    )
