"""Plain differences: ``.diff`` of a weight, ``.diff_b`` of a bias; W' = W + m * diff.

Tools that extract a LoRA from two models write them for norms and biases beside its pairs, and so does ComfyUI's
trainer. LyCORIS calls those of a norm ``w_norm`` and ``b_norm``. Sources: ComfyUI comfy/lora.py; LyCORIS
lycoris/modules/norms.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .full_rank import FullRank
from .kind import Kind, Shape

if TYPE_CHECKING:
    from ...files.header import TensorInfo


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    (shape,) = [info.shape for role, info in infos.items() if role != "alpha"]
    return Shape(shape, None)


KIND = Kind(
    title="difference",
    suffixes={".diff": "diff", ".w_norm": "diff", ".diff_b": "diff_b", ".b_norm": "diff_b"},
    complete=(frozenset({"diff"}), frozenset({"diff_b"})),
    shape=_shape,
    make=lambda tensors: FullRank(next(iter(tensors.values()))),
    accompanies=True,
)
