"""LyCORIS' weight decomposition, ``dora_scale`` beside a LoRA, LoHa or LoKr: always live.

W' = W + m * ((W + D) * dora_scale / norm - W), the norm being that of each row of W + D, or of each column where
``dora_scale`` is [1, in], LyCORIS' own way until 3.2. Where the file has one layer and the model several pieces of it,
a column is as long as all of them make it: each piece's branch sees the others' weights.

Source: LyCORIS lycoris/modules/locon.py, loha.py and lokr.py, forward and apply_weight_decompose, at strength 1; its
merge of LoHa and LoKr (get_diff_weight) multiplies by alpha / rank once more, which its training does not. Other
strengths are ComfyUI's (comfy/weight_adapter/base.py, weight_decompose): LyCORIS weakens only the scaling and adds D
whole at any strength, so that a strength near 0 would be nowhere near the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .kind import Adapter
    from .workspace import Workspace

SUFFIXES = {".dora_scale": "dora_scale"}


@dataclass(frozen=True, eq=False)
class Decomposed:
    """``change``: the adapter that is decomposed; ``scale``: [out, 1] or [1, in].

    ``window``: first row and the one after the last that count, of a change by columns that is of several pieces.
    """

    change: Adapter
    scale: torch.Tensor
    window: tuple[int, int] | None = None

    @classmethod
    def of(cls, change: Adapter, scale: torch.Tensor) -> Decomposed:
        """From the file's tensor, which may lack the second axis, or have a convolution's."""
        return cls(change, scale if scale.ndim == 2 else scale.reshape(-1, 1))

    @property
    def is_zero(self) -> bool:
        """Never: the scale changes the layer by itself."""
        return False

    def rows(self, first: int, last: int) -> Decomposed:
        if self.scale.shape[1] != 1:
            return Decomposed(self.change, self.scale, (first, last))
        return Decomposed(self.change.rows(first, last), self.scale[first:last])

    def dense(self) -> torch.Tensor:
        raise NotImplementedError("what dora_scale changes depends on the weight")

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        raise NotImplementedError("DoRA is never merged")

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import DecomposedBranch

        return DecomposedBranch(self.change, self.scale, strength, self.window)
