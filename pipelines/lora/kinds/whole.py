"""A whole parameter in the place of the model's, ``.set_weight``: W' is what the file holds, at any strength but 0.

Source: ComfyUI comfy/lora.py, load_lora and calculate_weight, where strengths do not count either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape
from .of_weight import OfWeight

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo


@dataclass(frozen=True, eq=False)
class Whole(OfWeight):
    """``value``: in the parameter's shape."""

    value: torch.Tensor

    @property
    def is_zero(self) -> bool:
        """Never: also zeros take the weight's place."""
        return False

    def rows(self, first: int, last: int) -> Whole:
        return Whole(self.value[first:last])

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        return self.value.reshape(weight.shape)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    return Shape(infos["set_weight"].shape, None)


KIND = Kind(
    title="whole weights",
    suffixes={".set_weight": "set_weight"},
    complete=(frozenset({"set_weight"}),),
    shape=_shape,
    make=lambda tensors: Whole(tensors["set_weight"]),
    of_weight=True,
)
