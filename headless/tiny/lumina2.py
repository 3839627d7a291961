"""A tiny Lumina Image 2.0 in the folder layout of the released one, and a LoRA for it as AI Toolkit saves it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from ...pipelines.checkpoint import Checkpoint
from ...pipelines.lora.file import lora_targets
from ...pipelines.models.lumina2.facts import MODEL, PROMPT_MARKER, SYSTEM_PROMPT

_HIDDEN = 48
_TEXT_HIDDEN = 32
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # Gemma's ids 0 to 3
# what the tokenizer learns its merges from: the system prompt, so that it leaves room for a prompt in 256 tokens
_CORPUS = (SYSTEM_PROMPT + PROMPT_MARKER, "a photo of a red fox in the snow, morning light", "a painting of a cat")


def make_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a checkpoint of a few hundred kilobytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
    """
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        tokenizer = make_tokenizer()
        parts: dict[str, Any] = {
            "transformer": _transformer(),
            "text_encoder": _text_encoder(len(tokenizer)),
            "vae": _vae(),
        }
    finally:
        torch.set_rng_state(rng_state)
    for name, part in parts.items():
        # nn.Module.to: diffusers warns in its own about layers kept in float32, of which there are none
        nn.Module.to(part, dtype)
        part.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=6.0).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Lumina2Pipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "Lumina2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_lora(
    path: Path,
    checkpoint: Path,
    *,
    rank: int = 4,
    seed: int = 1,
    size: float = 0.5,
    dtype: torch.dtype = torch.bfloat16,
    only: Iterable[str] = (),
    alpha: float | None = None,
    trigger_word: str = "",
) -> Path:
    """Writes a LoRA with AI Toolkit's keys and metadata; returns the path.

    Args:
        path: the file.
        checkpoint: the folder that it fits.
        rank: of every layer.
        seed: decides the values.
        size: standard deviation of B; A has 1 / rank.
        dtype: AI Toolkit's ``save.dtype``.
        only: layers whose name contains one of these; by default all that AI Toolkit trains.
        alpha: written beside each pair; AI Toolkit writes none.
        trigger_word: AI Toolkit stores it as the only tag.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, (rows, columns) in trained_layers(checkpoint).items():
        if only and not any(part in module for part in only):
            continue
        key = f"{MODEL.lora.prefixes[0]}{module}"
        tensors[f"{key}.lora_A.weight"] = (torch.randn(rank, columns, generator=generator) / rank).to(dtype)
        tensors[f"{key}.lora_B.weight"] = (torch.randn(rows, rank, generator=generator) * size).to(dtype)
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    software = {"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "0.12.26"}
    metadata = {
        "format": "pt",
        "name": path.stem,
        "ss_output_name": path.stem,
        "ss_base_model_version": MODEL.id,
        "training_info": json.dumps({"step": 250, "epoch": 3}),
        "software": json.dumps(software),
    }
    if trigger_word:
        metadata["ss_tag_frequency"] = json.dumps({f"1_{trigger_word}": {trigger_word: 1}})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def trained_layers(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains by default: every Linear of the blocks."""
    targets = lora_targets(Checkpoint.open(checkpoint, checkpoint.name, MODEL.components))
    blocks = ("layers.", "noise_refiner.", "context_refiner.")
    return {name: shape for name, shape in targets.items() if name.startswith(blocks)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-fallback BPE with Gemma's special tokens and word marker, which puts ``<bos>`` in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*_SPECIAL, *byte_tokens], show_progress=False, max_token_length=16
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def _transformer() -> nn.Module:
    model = Lumina2Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        hidden_size=_HIDDEN,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(300, 512, 512),
        cap_feat_dim=_TEXT_HIDDEN,
    )
    return _spread(model)


def _text_encoder(vocabulary: int) -> nn.Module:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=_TEXT_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=64,
        max_position_embeddings=512,
    )
    return _spread(Gemma2Model(config))


def _vae() -> nn.Module:
    # diffusers annotates these tuples as having one element
    make: Any = AutoencoderKL
    model = make(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return _spread(model)


def _spread(model: nn.Module) -> nn.Module:
    """Random weights that carry a signal through: what starts as zero would hide every LoRA and every text."""
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
