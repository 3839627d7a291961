"""AdaLoRA of PEFT: LoRA with a number for each of its ranks, W' = W + m * B diag(E) A * alpha / (rank + 1e-5).

The rank is that with which the training began, also of layers that were cut down, and is in PEFT's configuration as
``init_r``; without that it is the layer's own, and alpha, as of any file without one, the rank too. E is multiplied
into A. Source: PEFT peft/tuners/adalora/layer.py, and model.py, resize_modules_by_rank_pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .kind import PAIR, Kind, Shape, effective_alpha, product
from .low_rank import LowRank

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo

EPSILON = 1e-5


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    weight, rank = product(infos["lora_B"], infos["lora_A"], "lora_B and lora_A")
    if infos["lora_E"].shape not in ((rank, 1), (rank,)):
        raise ValueError(f"lora_E {list(infos['lora_E'].shape)} does not fit lora_A {list(infos['lora_A'].shape)}")
    return Shape(weight, rank)


def _make(tensors: Mapping[str, torch.Tensor]) -> LowRank:
    down = tensors["lora_A"].flatten(1)
    rank = len(down)
    alpha = effective_alpha(float(tensors["alpha"]) if "alpha" in tensors else None, rank)
    scale = alpha / (rank + EPSILON)
    return LowRank(down * tensors["lora_E"].reshape(-1, 1), tensors["lora_B"].flatten(1), scale * rank)


KIND = Kind(
    title="AdaLoRA",
    suffixes={**PAIR, ".lora_E": "lora_E", ".alpha": "alpha"},
    complete=(frozenset({"lora_A", "lora_B", "lora_E"}),),
    shape=_shape,
    make=_make,
)
