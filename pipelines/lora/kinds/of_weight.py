"""Changes that are made of the weight itself, as a rotation of it is: W' is computed from W, not added to it.

Merged: W' in float32 from the weight as it is then, rounded once. Live: (W' - W) x, both made in float32 on each call
from the layer's own weight, as LyCORIS does; so several files, live, each change the model's weight, and merged, each
changes what the one before left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .factors import tensors_of, with_tensors

if TYPE_CHECKING:
    import torch

    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


class OfWeight:
    """What such changes have in common; each is a frozen dataclass of tensors and plain values."""

    @property
    def is_zero(self) -> bool:
        raise NotImplementedError

    def rows(self, first: int, last: int) -> OfWeight:
        raise NotImplementedError

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """The weight that a matrix in float32 becomes, on the same device; a kernel's last axes are one."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        raise NotImplementedError("the change depends on the weight")

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        import torch

        own = weight.to(workspace.device, torch.float32)
        moved = with_tensors(self, {name: value.to(workspace.device) for name, value in tensors_of(self).items()})
        # a bias is a column
        changed = moved.changed(own.reshape(len(own), -1), strength).reshape(own.shape)
        return changed if out is None else out.copy_(changed)

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import OfWeightBranch

        return OfWeightBranch(self, strength)
