"""LoRA: W' = W + m * (B @ A) * alpha / rank.

* Merged, as AI Toolkit does before a preview round: cast(float32(W) + m * (B @ A) * scale), one rounding
  (network_mixins.py, ToolkitModuleMixin.merge_in).
* Live, by recipe. In float32 the two agree; in bfloat16 they are two different pictures. ``trainer``: AI Toolkit's
  network (network_mixins.py, ToolkitModuleMixin.forward), a float32 branch whatever the layer's dtype: down, up, times
  scale, times strength, cast, add. ``peft``: PEFT's Linear (tuners/lora/layer.py) as diffusers sets it up: the pair is
  cast to the base's dtype, and every operation rounds to it. ``sd-scripts``: kohya's module
  (networks/lora_lumina.py, LoRAModule.forward), in the dtype that autocast or the layer's input sets: down, up, times
  strength, times scale, add. ``recovery``: AI Toolkit's network under quantised weights (toolkit/util/quantize.py,
  quantize_model), whose pair has the run's dtype; it does not read alpha.

On a convolution A has its kernel, [rank, in, height, width], and B is [out, rank, 1, 1]. A kernel in the middle,
LyCORIS' ``lora_mid`` [rank, rank, height, width], is multiplied into A when the file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import PAIR, Kind, Shape, effective_alpha, has_values, merged_by_rows, product, spread, tucker_product

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic
    from .branch import Branch
    from .workspace import Workspace


@dataclass(frozen=True, eq=False)
class LowRank:
    """A pair of one layer, each in bfloat16, float16 or float32.

    Attributes:
        down: A, [rank, in]; a kernel's last axes are one with in.
        up: B, [out, rank].
        alpha: the file's, or the rank where it has none or 0.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank, with this layer's own rank; exactly 1 without alpha."""
        return self.alpha / self.rank

    @property
    def is_zero(self) -> bool:
        return not has_values(self.down) or not has_values(self.up)

    def rows(self, first: int, last: int) -> LowRank:
        return LowRank(self.down, self.up[first:last], self.alpha)

    def dense(self) -> torch.Tensor:
        return self.up.float() @ self.down.float() * self.scale

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        up, down = self.up.float(), self.down.float()

        def change(rows: slice) -> torch.Tensor:
            return workspace.product(up[rows], down)

        return merged_by_rows(weight, change, (strength, self.scale), workspace, out)

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        from .branches import PeftBranch, SdScriptsBranch, TrainerBranch

        if arithmetic == "trainer":
            return TrainerBranch(self.down.float(), self.up.float(), self.scale, strength)
        if arithmetic == "sd-scripts":
            return SdScriptsBranch(self.down.float(), self.up.float(), self.scale, strength)
        if arithmetic == "recovery":
            return PeftBranch(self.down.to(dtype), self.up.to(dtype), self.rank, strength)
        return PeftBranch(self.down.to(dtype), self.up.to(dtype), self.alpha, strength)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    up, down = infos["lora_B"], infos["lora_A"]
    if "lora_mid" not in infos:
        return Shape(*product(up, down, "lora_B and lora_A"))
    mid = infos["lora_mid"]
    if set(up.shape[2:] + down.shape[2:]) - {1} or len(up.shape) < 2 or len(down.shape) < 2:
        raise ValueError(f"lora_B {list(up.shape)} and lora_A {list(down.shape)} have kernels beside lora_mid's")
    return Shape(tucker_product(mid, up.shape[1::-1], down.shape[:2], "lora_mid"), down.shape[0])


def _make(tensors: Mapping[str, torch.Tensor]) -> LowRank:
    down, up = tensors["lora_A"].flatten(1), tensors["lora_B"].flatten(1)
    rank = down.shape[0]
    alpha = effective_alpha(float(tensors["alpha"]) if "alpha" in tensors else None, rank)
    if "lora_mid" not in tensors:
        return LowRank(down, up, alpha)
    down = spread(tensors["lora_mid"].float(), down.float())
    # the scale is by A's rows, and there may be others now
    return LowRank(down, up, alpha / rank * down.shape[0])


KIND = Kind(
    title="LoRA",
    suffixes={**PAIR, ".lora_mid.weight": "lora_mid", ".alpha": "alpha"},
    complete=(frozenset({"lora_A", "lora_B"}), frozenset({"lora_A", "lora_B", "lora_mid"})),
    shape=_shape,
    make=_make,
    decomposable=True,
    widens=True,
)
