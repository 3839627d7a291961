"""A tiny Qwen3-VL with the real one's 36 layers and a vision tower of 18, and a tokenizer with its traits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

if TYPE_CHECKING:
    from torch import nn

# the real ones' names; their order in the vocabulary is this one's own
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_CORPUS = ("a photo of a red fox in the snow, morning light", "user\nassistant\nsystem\n", "a painting of a cat")
_VOCABULARY, _ROWS = 600, 640  # of the tokenizer without its special tokens; of the embeddings
_HEAD = 128  # channels of a head, as in the real one
HIDDEN = 32


def qwen3_vl() -> nn.Module:
    """A new model; the weights are transformers' own."""
    first = _VOCABULARY
    ids = {token: first + index for index, token in enumerate(SPECIAL)}
    text = {
        "vocab_size": _ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": [24, 20, 20],
        },
        "attention_bias": False,
        "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        # three of its blocks feed the first layers of the language model, as in the real one
        "depth": 18,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 1,
        "out_hidden_size": HIDDEN,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [5, 11, 17],
        "hidden_act": "gelu_pytorch_tanh",
    }
    # transformers takes more than its signature says
    config: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))


def write_qwen3_vl_tokenizer(folder: Path, template: str) -> Path:
    """Writes ``tokenizer.json``, ``tokenizer_config.json`` and ``preprocessor_config.json``; returns the folder.

    Args:
        folder: made where it is missing.
        template: a text whose words are tokens each, as in the real vocabulary: models count those of their templates.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    plain = template
    for token in SPECIAL:
        plain = plain.replace(token, "")
    tokenizer.train_from_iterator((*_CORPUS, plain), trainer)
    # a small corpus leaves ids free: those of the special tokens are fixed
    tokenizer.add_tokens([f"<unused{index}>" for index in range(_VOCABULARY - tokenizer.get_vocab_size())])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 262144,
        "extra_special_tokens": list(SPECIAL[1:]),
    }
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    for name, content in (("tokenizer_config", config), ("preprocessor_config", processor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), "utf-8")
    return folder
