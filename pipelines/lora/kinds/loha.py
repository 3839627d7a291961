"""LoHa: W' = W + m * (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank, the middle product element by element.

The rank is that of ``w1_b``; without alpha the scale is 1. Live: in float32, the product made anew on each call, as
LyCORIS does; kept, it would be the model once more. Source: LyCORIS lycoris/modules/loha.py and functional/loha.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape, effective_alpha, matrix_product, merged

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...files.header import TensorInfo
    from ...options import Arithmetic


@dataclass(frozen=True, eq=False)
class LoHa:
    """``w1_a``, ``w2_a``: [out, rank]; ``w1_b``, ``w2_b``: [rank, in]."""

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    scale: float

    @property
    def is_zero(self) -> bool:
        return not all(bool(factor.any()) for factor in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))

    def rows(self, first: int, last: int) -> LoHa:
        return LoHa(self.w1_a[first:last], self.w1_b, self.w2_a[first:last], self.w2_b, self.scale)

    def dense(self) -> torch.Tensor:
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b) * self.scale

    def merge(self, weight: torch.Tensor, strength: float, device: str) -> torch.Tensor:
        first = self.w1_a.to(device) @ self.w1_b.to(device)
        second = self.w2_a.to(device) @ self.w2_b.to(device)
        return merged(weight, first * second * self.scale * strength)

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> nn.Module:
        from .branches import LoHaBranch

        return LoHaBranch(self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.scale * strength)


def _shape(infos: Mapping[str, TensorInfo]) -> Shape:
    first = matrix_product(infos["hada_w1_a"], infos["hada_w1_b"], "hada_w1_a and hada_w1_b")
    second = matrix_product(infos["hada_w2_a"], infos["hada_w2_b"], "hada_w2_a and hada_w2_b")
    if first[:2] != second[:2]:
        raise ValueError(f"hada_w1 makes {list(first[:2])} and hada_w2 {list(second[:2])}")
    return Shape(first[:2], first[2])


def _make(tensors: Mapping[str, torch.Tensor]) -> LoHa:
    w1_b = tensors["hada_w1_b"]
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    scale = effective_alpha(alpha, w1_b.shape[0]) / w1_b.shape[0]
    return LoHa(tensors["hada_w1_a"], w1_b, tensors["hada_w2_a"], tensors["hada_w2_b"], scale)


_ROLES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

KIND = Kind(
    title="LoHa",
    suffixes={f".{role}": role for role in (*_ROLES, "alpha")},
    complete=(frozenset(_ROLES),),
    shape=_shape,
    make=_make,
    decomposable=True,
)
