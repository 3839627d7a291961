"""OFT of PEFT and OneTrainer (``oft_R.weight``): blocks of the weight's columns are turned, W' = W R^T.

``oft_R.weight`` [count, height * (height - 1) / 2] has the upper triangles, row by row, of skew blocks Q, and
R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4. With one block for many (``block_share``) it is used again and again. OneTrainer's
``scaled_oft`` divides the triangles by 2 * sqrt(height - 1) first. Sources: PEFT peft/tuners/oft/layer.py,
_cayley_batch and get_weight, as its configuration is by default; OneTrainer modules/module/oft_utils.py.

Neither has strengths: W' = W + m * (W R^T - W). A convolution's weight is turned the other way round by OneTrainer than
by PEFT, and their files are alike: it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape
from .of_weight import OfWeight

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo


@dataclass(frozen=True, eq=False)
class OftV2(OfWeight):
    """``turns``: R, [count, height, height]; one is for every block."""

    turns: torch.Tensor

    @property
    def is_zero(self) -> bool:
        import torch

        return bool((self.turns == torch.eye(self.turns.shape[-1])).all())

    def rows(self, first: int, last: int) -> OftV2:
        return self

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        import torch

        own = weight.unflatten(1, (-1, self.turns.shape[-1]))
        turns = self.turns.expand(own.shape[1], -1, -1)
        return torch.lerp(own, torch.einsum("obc,bkc->obk", own, turns), strength).flatten(1)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    shape = infos["oftv2_R"].shape
    height = block_height(shape[1]) if len(shape) == 2 else 0
    if not height or not shape[0]:
        raise ValueError(f"oft_R {list(shape)} holds no triangles")
    if len(whole) > 2:
        raise ValueError("the trainers that write oft_R disagree on what it does to a convolution")
    if len(whole) == 2 and shape[0] == 1 and whole[1] % height == 0:
        return Shape(whole, None)
    return Shape((*whole[:1], shape[0] * height), None)


def block_height(values: int) -> int:
    """That of a block with so many values above its diagonal; 0 where there is no such."""
    height = (1 + math.isqrt(1 + 8 * values)) // 2
    return height if values and height * (height - 1) // 2 == values else 0


def _make(tensors: Mapping[str, torch.Tensor]) -> OftV2:
    import torch

    triangles = tensors["oftv2_R"]
    height = block_height(triangles.shape[1])
    if "oftv2_scaled" in tensors and bool(tensors["oftv2_scaled"]):
        triangles = triangles / (2 * math.sqrt(height - 1))
    upper = torch.zeros(len(triangles), height, height)
    rows, columns = torch.triu_indices(height, height, 1)
    upper[:, rows, columns] = triangles
    skew = upper - upper.transpose(1, 2)
    square = skew @ skew
    return OftV2(torch.eye(height) + 2 * (skew + square + square @ skew) + square @ square)


KIND = Kind(
    title="OFTv2",
    suffixes={
        ".oft_R.weight": "oftv2_R",
        ".oft_R": "oftv2_R",
        ".oft_R.scaled_oft": "oftv2_scaled",
        # OneTrainer's has none that counts
        ".alpha": "alpha",
    },
    complete=(frozenset({"oftv2_R"}), frozenset({"oftv2_R", "oftv2_scaled"})),
    shape=_shape,
    make=_make,
    of_weight=True,
)
