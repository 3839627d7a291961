"""LoHa: W' = W + m * (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank, the middle product element by element.

The rank is that of ``w1_b``; without alpha the scale is 1. Live: in float32, the product made anew on each call, as
LyCORIS does; kept, it would be the model once more. Source: LyCORIS lycoris/modules/loha.py and functional/loha.py.

On a convolution ``w1_b`` and ``w2_b`` are [rank, in * height * width]. With kernels in the middle, ``hada_t1`` and
``hada_t2`` [rank, rank, height, width], ``w1_a`` and ``w2_a`` are [rank, out] and the others [rank, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape, effective_alpha, has_values, matrix_product, merged_by_rows, spread, tucker_product

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


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
        return not all(has_values(factor) for factor in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))

    def rows(self, first: int, last: int) -> LoHa:
        return LoHa(self.w1_a[first:last], self.w1_b, self.w2_a[first:last], self.w2_b, self.scale)

    def dense(self) -> torch.Tensor:
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b) * self.scale

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        def change(rows: slice) -> torch.Tensor:
            first = self.w1_a[rows].to(workspace.device) @ self.w1_b.to(workspace.device)
            return workspace.product(self.w2_a[rows], self.w2_b).mul_(first)

        return merged_by_rows(weight, change, (self.scale, strength), workspace, out)

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import LoHaBranch

        return LoHaBranch(self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.scale, strength)


def _factor(infos: Mapping[str, TensorInfo], number: int) -> tuple[int, ...]:
    first, second = infos[f"hada_w{number}_a"], infos[f"hada_w{number}_b"]
    names = f"hada_w{number}_a and hada_w{number}_b"
    if f"hada_t{number}" not in infos:
        return matrix_product(first, second, names)[:2]
    if len(first.shape) != 2 or len(second.shape) != 2:
        raise ValueError(f"{names} {list(first.shape)} and {list(second.shape)} are no matrices")
    return tucker_product(infos[f"hada_t{number}"], first.shape, second.shape, f"hada_t{number}")


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    first, second = _factor(infos, 1), _factor(infos, 2)
    if first != second:
        raise ValueError(f"hada_w1 makes {list(first)} and hada_w2 {list(second)}")
    return Shape(first, infos["hada_w1_b"].shape[0])


def _matrices(tensors: Mapping[str, torch.Tensor], number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[out, rank] and [rank, in], a kernel's last axes one with in."""
    first, second = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
    core = tensors.get(f"hada_t{number}")
    return (first, second) if core is None else (first.T.contiguous(), spread(core, second))


def _make(tensors: Mapping[str, torch.Tensor]) -> LoHa:
    rank = tensors["hada_w1_b"].shape[0]
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    return LoHa(*_matrices(tensors, 1), *_matrices(tensors, 2), effective_alpha(alpha, rank) / rank)


_ROLES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")

KIND = Kind(
    title="LoHa",
    suffixes={f".{role}": role for role in (*_ROLES, *_CORES, "alpha")},
    complete=(frozenset(_ROLES), frozenset(_ROLES + _CORES)),
    shape=_shape,
    make=_make,
    decomposable=True,
)
