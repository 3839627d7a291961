"""IA3: rows or columns of the weight are multiplied by numbers.

LyCORIS: ``weight`` has a number w for each row, or for each column where ``on_input`` is 1, and
W' = W * (1 + m * w); the bias stays, as in LyCORIS' versions from 2 on. Source: LyCORIS lycoris/modules/ia3.py.

PEFT: ``ia3_l`` [out, 1] or [1, in] holds the factors themselves, and those of rows multiply the bias too. It has no
strengths: W' = W * (1 + m * (l - 1)). Source: PEFT peft/tuners/ia3/layer.py.
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
class Ia3(OfWeight):
    """``factors``: [out, 1], [1, in], or of a convolution's columns [1, in, 1]."""

    factors: torch.Tensor

    @property
    def is_zero(self) -> bool:
        return bool((self.factors == 1).all())

    def rows(self, first: int, last: int) -> Ia3:
        return Ia3(self.factors[first:last]) if len(self.factors) > 1 else self

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        import torch

        factors = torch.lerp(torch.ones_like(self.factors), self.factors, strength)
        if factors.ndim == 2:
            return weight * factors
        return (weight.unflatten(1, (factors.shape[1], -1)) * factors).flatten(1)


def by_rows(shape: tuple[int, ...]) -> bool:
    """Whether PEFT's ``ia3_l`` of this shape multiplies rows."""
    return len(shape) == 2 and shape[1] == 1


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    role = "ia3_l" if "ia3_l" in infos else "ia3_weight"
    shape = infos[role].shape
    if role == "ia3_l":
        if len(shape) != 2 or 1 not in shape:
            raise ValueError(f"ia3_l {list(shape)} does not tell whether it is for rows or columns")
        rows, columns = shape
        # a bias has rows alone
        return Shape((rows, *whole[1:]) if columns == 1 else (*whole[:1], columns, *whole[2:]), None)
    count = shape[0] if len(shape) == 1 else shape[1] if len(shape) > 2 else 0
    if math.prod(shape) != count or not count:
        raise ValueError(f"weight {list(shape)} are no numbers for rows or columns")
    # on_input tells which, where both would do
    return Shape(whole if count in whole[:2] else (count, *whole[1:]), None)


def _make(tensors: Mapping[str, torch.Tensor]) -> Ia3:
    if "ia3_l" in tensors:
        return Ia3(tensors["ia3_l"])
    numbers = tensors["ia3_weight"]
    factors = 1 + numbers.flatten()
    if not bool(tensors["ia3_on_input"]):
        return Ia3(factors[:, None])
    return Ia3(factors[None] if numbers.ndim == 1 else factors[None, :, None])


KIND = Kind(
    title="IA3",
    suffixes={".ia3_l": "ia3_l", ".ia3_l.weight": "ia3_l", ".on_input": "ia3_on_input"},
    complete=(frozenset({"ia3_l"}), frozenset({"ia3_weight", "ia3_on_input"})),
    shape=_shape,
    make=_make,
    of_weight=True,
)
