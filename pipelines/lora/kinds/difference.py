"""Plain differences: ``.diff`` of a weight, ``.diff_b`` of a bias; W' = W + m * diff.

Tools that extract a LoRA from two models write them for norms and biases beside its pairs. Source: ComfyUI
comfy/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .full_rank import FullRank
from .kind import Kind, Shape

if TYPE_CHECKING:
    from ...files.header import TensorInfo


def _shape(infos: Mapping[str, TensorInfo]) -> Shape:
    (shape,) = [info.shape for role, info in infos.items() if role != "alpha"]
    if len(shape) not in (1, 2):
        raise ValueError(f"a difference of shape {list(shape)} fits no layer")
    return Shape(shape, None)


KIND = Kind(
    title="difference",
    suffixes={".diff": "diff", ".diff_b": "diff_b"},
    complete=(frozenset({"diff"}), frozenset({"diff_b"})),
    shape=_shape,
    make=lambda tensors: FullRank(next(iter(tensors.values()))),
    accompanies=True,
)
