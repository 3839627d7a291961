"""AI Toolkit's network type ``fullrank``: one matrix [out, in], stored as ``lora_A``; W' = W + m * A.

Source: AI Toolkit lora_special.py, LoRAModule with full_rank; merge and forward as for LoRA, without an up projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape, has_values, merged

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


@dataclass(frozen=True, eq=False)
class FullRank:
    """``delta``: in the parameter's shape."""

    delta: torch.Tensor

    @property
    def is_zero(self) -> bool:
        return not has_values(self.delta)

    def rows(self, first: int, last: int) -> FullRank:
        return FullRank(self.delta[first:last])

    def dense(self) -> torch.Tensor:
        return self.delta.flatten(1)

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        change = workspace.empty(self.delta.shape).copy_(self.delta)
        return merged(weight, change, (strength,), out)

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import TrainerBranch

        return TrainerBranch(self.delta.flatten(1), None, 1.0, strength)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    shape = infos["lora_A"].shape
    if len(shape) < 2:
        raise ValueError(f"lora_A {list(shape)} is no matrix")
    return Shape(shape, None)


KIND = Kind(
    title="full rank",
    suffixes={".lora_A.weight": "lora_A"},
    complete=(frozenset({"lora_A"}),),
    shape=_shape,
    make=lambda tensors: FullRank(tensors["lora_A"]),
)
