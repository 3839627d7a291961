"""DoRA as AI Toolkit and PEFT save it (``magnitude``, ``lora_magnitude_vector``): always live.

AI Toolkit's merge skips this kind. LyCORIS' ``dora_scale`` is another rule: see ``decomposed.py``.

y = W x + b + m * B A x + (magnitude / norm - 1) * ((W + m * B A) x), norm being the length of each row of W + m * B A;
the bias is in the first part alone. Both added parts are computed in float32 and rounded to the layer's dtype, then
added to each other, then to the layer's output.

Source: AI Toolkit toolkit/models/DoRA.py, and network_mixins.py, ToolkitModuleMixin.forward. Its own loader does not
place ``magnitude``: a job that was resumed shows previews with the norms of the base's rows instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import PAIR, Kind, Shape, effective_alpha, product

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


@dataclass(frozen=True, eq=False)
class Dora:
    """``down`` [rank, in], ``up`` [out, rank], ``magnitude`` [out]."""

    down: torch.Tensor
    up: torch.Tensor
    magnitude: torch.Tensor

    @property
    def is_zero(self) -> bool:
        """Never: the magnitudes change the layer by themselves."""
        return False

    def rows(self, first: int, last: int) -> Dora:
        return Dora(self.down, self.up[first:last], self.magnitude[first:last])

    def dense(self) -> torch.Tensor:
        raise NotImplementedError("what DoRA changes depends on the weight")

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        raise NotImplementedError("DoRA is never merged")

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import DoraBranch

        return DoraBranch(self.down, self.up, self.magnitude, strength)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    weight, rank = product(infos["lora_B"], infos["lora_A"], "lora_B and lora_A")
    # PEFT's of a convolution is [1, out, 1, 1]
    if infos["magnitude"].shape not in ((weight[0],), (1, weight[0], *[1] * (len(weight) - 2))):
        raise ValueError(
            f"magnitude {list(infos['magnitude'].shape)} does not fit lora_B {list(infos['lora_B'].shape)}"
        )
    return Shape(weight, rank)


def _make(tensors: Mapping[str, torch.Tensor]) -> Dora:
    rank = tensors["lora_A"].shape[0]
    scale = effective_alpha(float(tensors["alpha"]), rank) / rank if "alpha" in tensors else 1.0
    down, up = tensors["lora_A"].flatten(1), tensors["lora_B"].flatten(1)
    return Dora(down, up * scale, tensors["magnitude"].flatten())


KIND = Kind(
    title="DoRA",
    suffixes={
        **PAIR,
        ".alpha": "alpha",
        ".magnitude": "magnitude",
        ".lora_magnitude_vector": "magnitude",
        ".lora_magnitude_vector.weight": "magnitude",
    },
    complete=(frozenset({"lora_A", "lora_B", "magnitude"}),),
    shape=_shape,
    make=_make,
    mergeable=False,
    of_weight=True,
)
