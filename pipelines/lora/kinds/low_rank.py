"""LoRA: W' = W + m * (B @ A) * alpha / rank.

* Merged, as AI Toolkit does before a preview round: cast(float32(W) + m * (B @ A) * scale), one rounding
  (network_mixins.py, ToolkitModuleMixin.merge_in). Or as other references do: see ``merges.py``.
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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .kind import PAIR, Kind, Shape, effective_alpha, has_values, merged_by_rows, product, spread, tucker_product
from .merges import by_addmm, by_peft, in_file_dtype, rounded

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace


@dataclass(frozen=True, eq=False)
class LowRank:
    """A pair of one layer, each in bfloat16, float16 or float32.

    Attributes:
        down: A, [rank, in]; a kernel's last axes are one with in.
        up: B, [out, rank].
        alpha: the file's, or the rank where it has none or 0.
        alpha_beside: whether alpha is a tensor beside the pair: diffusers multiplies that into the pair as it reads it.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    alpha_beside: bool = False

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
        return replace(self, up=self.up[first:last])

    def dense(self) -> torch.Tensor:
        return self.up.float() @ self.down.float() * self.scale

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        dtype = weight.dtype
        if weight.ndim == 2 and arithmetic == "peft":
            down, up, scale = self.as_diffusers_reads_it(dtype)
            return by_peft(weight, up, down, scale * strength, workspace, out)
        if weight.ndim == 2 and arithmetic == "addmm":
            scale = rounded(self.alpha, dtype) / self.rank if self.alpha_beside else self.scale
            return by_addmm(weight, self.up.to(dtype), self.down.to(dtype), scale * strength, workspace, out)
        if weight.ndim == 2 and arithmetic == "file" and self.up.dtype == self.down.dtype:
            return in_file_dtype(weight, self.up, self.down, self.scale * strength, workspace, out)
        up, down = self.up.float(), self.down.float()

        def change(rows: slice) -> torch.Tensor:
            return workspace.product(up[rows], down)

        return merged_by_rows(weight, change, (strength, self.scale), workspace, out)

    def as_diffusers_reads_it(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A, B and their scale; the pair in ``dtype``, which is the layer's.

        An alpha beside the pair is multiplied into it, in the file's dtype: where alpha / rank is small, B gets a power
        of two of it, so that the two are scaled about alike. Source: diffusers loaders/lora_conversion_utils.py,
        get_alpha_scales.
        """
        if not self.alpha_beside:
            return self.down.to(dtype), self.up.to(dtype), self.scale
        of_down, of_up = self.scale, 1.0
        while 0 < of_down * 2 < of_up:
            of_down, of_up = of_down * 2, of_up / 2
        return (self.down * of_down).to(dtype), (self.up * of_up).to(dtype), 1.0

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
        # rank is there where alpha comes from PEFT's configuration
        return LowRank(down, up, alpha, "alpha" in tensors and "rank" not in tensors)
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
