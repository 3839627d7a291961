"""LoRAs and LoKrs as AI Toolkit saves them: its names, its metadata, and an alpha in a LoKr only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from .files import Tensors, write_tensors

Layers = Mapping[str, tuple[int, int]]  # module name -> (out, in)

# what AI Toolkit sets where the rank is unlimited; infinite in a float16 file
_WHOLE_ALPHA = 9999999999.0


class LoRAOptions(TypedDict, total=False):
    """How a LoRA is made.

    Attributes:
        rank: of every layer; 4.
        seed: decides the values; 1.
        size: standard deviation of B; 0.5. That of A is 1 / rank.
        dtype: AI Toolkit's ``save.dtype``; bfloat16.
        only: layers whose name contains one of these; by default all.
        alpha: written beside each pair; AI Toolkit writes none.
        trigger_word: AI Toolkit stores it as the only tag.
    """

    rank: int
    seed: int
    size: float
    dtype: torch.dtype
    only: Iterable[str]
    alpha: float | None
    trigger_word: str


class LoKrOptions(TypedDict, total=False):
    """How a LoKr is made: the change of a layer is the Kronecker product of w1 and w2, times alpha / rank.

    Attributes:
        rank: w2 is a product of two matrices of this rank, where it has more rows or columns than twice as many. None
            is AI Toolkit's default, in which w2 is always one matrix.
        factor: a side of w1 where it divides the layer's, like 8 of 384 = 8 * 48. By default the sides of w1 and w2
            are as near to each other as can be, like 384 = 16 * 24.
        old_format: AI Toolkit's ``network.old_lokr_format``: ``lycoris_layers_0_attention_to_q.lokr_w1``.
        seed: decides the values; 1.
        size: standard deviation of w1 and of w2; 0.5.
        dtype: AI Toolkit's ``save.dtype``; bfloat16.
        only: layers whose name contains one of these; by default all.
        alpha: where w2 is a product; by default the rank, so that the factor is 1.
    """

    rank: int | None
    factor: int
    old_format: bool
    seed: int
    size: float
    dtype: torch.dtype
    only: Iterable[str]
    alpha: float | None


def write_lora(path: Path, layers: Layers, model: str, prefix: str, **options: Unpack[LoRAOptions]) -> Path:
    """Writes a LoRA; returns the path.

    Args:
        path: the file.
        layers: those that AI Toolkit trains.
        model: AI Toolkit's name of the architecture, like ``zimage``.
        prefix: of the names: ``transformer`` or ``diffusion_model``.
        options: see :class:`LoRAOptions`.
    """
    generator = torch.Generator().manual_seed(options.get("seed", 1))
    rank, size = options.get("rank", 4), options.get("size", 0.5)
    dtype, alpha = options.get("dtype", torch.bfloat16), options.get("alpha")
    tensors: Tensors = {}
    for module, (rows, columns) in _chosen(layers, options.get("only", ())).items():
        key = f"{prefix}.{module}"
        tensors[f"{key}.lora_A.weight"] = (torch.randn(rank, columns, generator=generator) / rank).to(dtype)
        tensors[f"{key}.lora_B.weight"] = (torch.randn(rows, rank, generator=generator) * size).to(dtype)
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return write_tensors(path, tensors, _metadata(path.stem, model, options.get("trigger_word", "")))


def write_lokr(path: Path, layers: Layers, model: str, prefix: str, **options: Unpack[LoKrOptions]) -> Path:
    """Writes a LoKr; returns the path. Arguments as of :func:`write_lora`, options as of :class:`LoKrOptions`."""
    generator = torch.Generator().manual_seed(options.get("seed", 1))
    rank, factor, size = options.get("rank"), options.get("factor", -1), options.get("size", 0.5)
    dtype, old = options.get("dtype", torch.bfloat16), options.get("old_format", False)
    whole_alpha = _WHOLE_ALPHA if rank is None else float(rank)
    alpha = options.get("alpha") or whole_alpha

    def random(rows: int, columns: int, scale: float) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * scale).to(dtype)

    tensors: Tensors = {}
    for module, (rows, columns) in _chosen(layers, options.get("only", ())).items():
        key = f"lycoris_{module.replace('.', '_')}" if old else f"{prefix}.{module}"
        (rows_1, rows_2), (columns_1, columns_2) = _factors(rows, factor), _factors(columns, factor)
        tensors[f"{key}.lokr_w1"] = random(rows_1, columns_1, size)
        if rank is not None and 2 * rank < max(rows_2, columns_2):
            tensors[f"{key}.lokr_w2_a"] = random(rows_2, rank, size)
            tensors[f"{key}.lokr_w2_b"] = random(rank, columns_2, rank**-0.5)
            tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
        else:
            tensors[f"{key}.lokr_w2"] = random(rows_2, columns_2, size)
            # beside a whole w2 AI Toolkit stores the rank, whatever its alpha is
            tensors[f"{key}.alpha"] = torch.tensor(whole_alpha, dtype=dtype)
    return write_tensors(path, tensors, _metadata(path.stem, model, ""))


def _chosen(layers: Layers, only: Iterable[str]) -> Layers:
    parts = tuple(only)
    return {name: shape for name, shape in layers.items() if not parts or any(part in name for part in parts)}


def _factors(size: int, factor: int) -> tuple[int, int]:
    """The sides of w1 and w2 that make up a layer's: 384 is (16, 24), with a factor of 8 it is (8, 48)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = isqrt(size) if factor < 0 else min(factor, isqrt(size))
    first = max(number for number in range(1, limit + 1) if size % number == 0)
    return first, size // first


def _metadata(name: str, model: str, trigger_word: str) -> dict[str, str]:
    software = {"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "0.12.26"}
    metadata = {
        "format": "pt",
        "name": name,
        "ss_output_name": name,
        "ss_base_model_version": model,
        "training_info": json.dumps({"step": 250, "epoch": 3}),
        "software": json.dumps(software),
    }
    if trigger_word:
        metadata["ss_tag_frequency"] = json.dumps({f"1_{trigger_word}": {trigger_word: 1}})
    return metadata
