"""LoKr: W' = W + m * kron(w1, w2) * scale, where w1 and w2 are matrices or products of two.

The scale is exactly 1 where both are matrices, whatever ``alpha`` says (AI Toolkit writes 9999999999, which is inf in
float16); else alpha / rank. PEFT has alpha / rank in both cases, with the rank of its configuration where the matrices
are whole (peft/tuners/lokr/layer.py). Merged: cast(float32(W) + kron * scale * m). Live: in the layer's own dtype,
factor by factor, without making the product. Source: AI Toolkit toolkit/models/lokr.py.

Merged by the arithmetic ``addmm``, the factors are cast to the weight's dtype, every product of theirs is rounded to
it, and the sum is rounded once. Source: ai-toolkit-inference src/pipelines/flux2.py, _merge_lokr_to_transformer.

On a convolution w2 has the kernel: [out_k, in_n, height, width], or its second factor is [rank, in_n * height * width].
With a kernel in the middle, ``lokr_t2`` [rank, rank, height, width], its factors are [rank, out_k] and [rank, in_n].
Source: LyCORIS lycoris/functional/lokr.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .kind import Kind, Shape, effective_alpha, has_values, matrix_product, merged, spread, tucker_product
from .merges import own_copy, rounded

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


@dataclass(frozen=True, eq=False)
class LoKr:
    """One layer's factors.

    Attributes:
        w1: [out_l, in_m].
        w2: [out_k, in_n], a kernel's last axes one with in_n, or its first factor [out_k, rank].
        w2_b: [rank, in_n], or None where ``w2`` is whole.
        alpha, rank: their ratio is the scale, see the module's head; both 1 where that is.
        w1_of: the two factors that ``w1`` is the product of; None where the file has it whole.
        window: first row and the one after the last of the product that count; None is all of them.
    """

    w1: torch.Tensor
    w2: torch.Tensor
    w2_b: torch.Tensor | None
    alpha: float
    rank: int
    w1_of: tuple[torch.Tensor, torch.Tensor] | None = None
    window: tuple[int, int] | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def is_zero(self) -> bool:
        parts = (self.w1, self.w2) if self.w2_b is None else (self.w1, self.w2, self.w2_b)
        return not all(has_values(part) for part in parts)

    def rows(self, first: int, last: int) -> LoKr:
        height = self.w2.shape[0]
        top, bottom = first // height, -(-last // height)
        window = (first - top * height, last - top * height)
        first_of = None if self.w1_of is None else (self.w1_of[0][top:bottom], self.w1_of[1])
        return replace(self, w1=self.w1[top:bottom], w1_of=first_of, window=window)

    def dense(self) -> torch.Tensor:
        return self._product(self.w1, self.w2, self.w2_b)

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        if weight.ndim == 2 and arithmetic == "addmm":
            return self._added(weight, strength, workspace, out)
        device, w2_b = workspace.device, self.w2_b
        change = self._product(self.w1.to(device), self.w2.to(device), None if w2_b is None else w2_b.to(device))
        return merged(weight, change, (strength,), out)

    def _added(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None
    ) -> torch.Tensor:
        import torch

        def factor(whole: torch.Tensor, pair: Sequence[torch.Tensor] | None) -> torch.Tensor:
            first, *rest = (own.to(workspace.device, weight.dtype) for own in pair or (whole,))
            return first @ rest[0] if rest else first

        second = None if self.w2_b is None else (self.w2, self.w2_b)
        change = torch.kron(factor(self.w1, self.w1_of), factor(self.w2, second))[slice(*(self.window or (None,)))]
        scale = rounded(self.alpha, weight.dtype) / self.rank
        return own_copy(weight, workspace, out).add_(change, alpha=scale * strength)

    def _product(self, w1: torch.Tensor, w2: torch.Tensor, w2_b: torch.Tensor | None) -> torch.Tensor:
        import torch

        return torch.kron(w1, w2 if w2_b is None else w2 @ w2_b)[slice(*(self.window or (None,)))] * self.scale

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import LoKrBranch

        return LoKrBranch(self.w1, self.w2, self.w2_b, self.scale, strength, dtype, self.window)


def _first(infos: Mapping[str, TensorInfo]) -> tuple[int, int, int | None]:
    if "lokr_w1" not in infos:
        return matrix_product(infos["lokr_w1_a"], infos["lokr_w1_b"], "lokr_w1_a and lokr_w1_b")
    shape = infos["lokr_w1"].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"lokr_w1 {list(shape)} is no matrix")
    return shape[0], shape[1], None


def _second(infos: Mapping[str, TensorInfo]) -> tuple[tuple[int, ...], int | None]:
    if "lokr_w2" in infos:
        shape = infos["lokr_w2"].shape
        if not 2 <= len(shape) <= 5 or 0 in shape:
            raise ValueError(f"lokr_w2 {list(shape)} is no matrix")
        return shape, None
    first, second = infos["lokr_w2_a"], infos["lokr_w2_b"]
    if "lokr_t2" not in infos:
        *weight, rank = matrix_product(first, second, "lokr_w2_a and lokr_w2_b")
        return tuple(weight), rank
    if len(first.shape) != 2 or len(second.shape) != 2:
        raise ValueError(f"lokr_w2_a and lokr_w2_b {list(first.shape)} and {list(second.shape)} are no matrices")
    return tucker_product(infos["lokr_t2"], first.shape, second.shape, "lokr_t2"), second.shape[0]


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    (rows, columns, first_rank), (second, second_rank) = _first(infos), _second(infos)
    return Shape((rows * second[0], columns * second[1], *second[2:]), second_rank or first_rank)


def _make(tensors: Mapping[str, torch.Tensor]) -> LoKr:
    ranks = [tensors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
    # PEFT's, told beside the tensors
    ranks += [int(tensors["rank"])] if "rank" in tensors else []
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    scale = (effective_alpha(alpha, ranks[0]), ranks[0]) if ranks else (1.0, 1)
    w1_of = None if "lokr_w1" in tensors else (tensors["lokr_w1_a"], tensors["lokr_w1_b"])
    w1 = tensors["lokr_w1"] if w1_of is None else w1_of[0] @ w1_of[1]
    if "lokr_w2" in tensors:
        return LoKr(w1, tensors["lokr_w2"].flatten(1), None, *scale, w1_of)
    second, second_b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    if "lokr_t2" in tensors:
        second, second_b = second.T.contiguous(), spread(tensors["lokr_t2"], second_b)
    return LoKr(w1, second, second_b, *scale, w1_of)


_ROLES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha")
_FIRST = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
_SECOND = (
    frozenset({"lokr_w2"}),
    frozenset({"lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
)

KIND = Kind(
    title="LoKr",
    suffixes={f".{role}": role for role in _ROLES},
    complete=tuple(first | second for first in _FIRST for second in _SECOND),
    decomposable=True,
    shape=_shape,
    make=_make,
)
