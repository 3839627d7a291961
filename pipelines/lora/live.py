"""LoRA as a branch beside a layer, added when the layer runs; the weights stay as they are.

Two arithmetics, by recipe. In float32 they agree; in bfloat16 they are two different pictures.

* ``trainer``: AI Toolkit's network (network_mixins.py, ToolkitModuleMixin.forward). The branch runs in float32 whatever
  the layer's dtype: down, up, times scale, times strength, cast, add.
* ``peft``: PEFT's Linear (tuners/lora/layer.py) as diffusers sets it up. The pair is cast to the base's dtype, and
  every operation rounds to it.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.functional import linear

from .file import LoraWeights

Arithmetic = Literal["trainer", "peft"]
_CHILD = "aitk_lora"  # the branches are a child of their layer, so that they move between devices with it


class _TrainerBranch(nn.Module):
    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, lora: LoraWeights, strength: float) -> None:
        super().__init__()
        # float32 tensors, not Python numbers: two roundings, scale first
        for name, value in (
            ("down", lora.down),
            ("up", lora.up),
            ("scale", torch.tensor(lora.scale, dtype=torch.float32)),
            ("multiplier", torch.tensor([strength], dtype=torch.float32)),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = linear(linear(x.to(torch.float32), self.down), self.up) * self.scale * self.multiplier
        return output + added.to(output.dtype)


class _PeftBranch(nn.Module):
    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, lora: LoraWeights, strength: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("down", lora.down.to(dtype), persistent=False)
        self.register_buffer("up", lora.up.to(dtype), persistent=False)
        self.scaling = strength * lora.alpha / lora.rank

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + linear(linear(x.to(self.down.dtype), self.down), self.up) * self.scaling


class LiveLayer:
    """The branches of one layer, in list order, behind a forward hook of it.

    Args:
        layer: any Linear, also a quantised one.
        dtype: what the layer runs in.
        arithmetic: see the module's head.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype, arithmetic: Arithmetic) -> None:
        self._layer = layer
        self._dtype = dtype
        self._arithmetic = arithmetic
        self._branches = nn.ModuleList()
        layer.add_module(_CHILD, self._branches)
        self._hook = layer.register_forward_hook(self._add)

    def append(self, lora: LoraWeights, strength: float) -> None:
        """Adds one more branch after the others, on the device where the layer is."""
        trainer = self._arithmetic == "trainer"
        branch = _TrainerBranch(lora, strength) if trainer else _PeftBranch(lora, strength, self._dtype)
        self._branches.append(branch.to(cast(torch.Tensor, self._layer.weight).device))

    def remove(self) -> None:
        """Takes the branches off; the layer is as it was."""
        self._hook.remove()
        delattr(self._layer, _CHILD)

    def _add(self, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for branch in self._branches:
            output = branch(args[0], output)
        return output
