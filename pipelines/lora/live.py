"""LoRA as a branch beside a layer, added when the layer runs; the weights stay as they are.

Two arithmetics, by recipe. In float32 they agree; in bfloat16 they are two different pictures.

* ``trainer``: AI Toolkit's network (network_mixins.py, fact sheet 5.2). The branch runs in float32 whatever the layer's
  dtype: down, up, times scale, times strength, cast, add.
* ``peft``: PEFT's Linear (tuners/lora/layer.py) as diffusers sets it up. The pair is cast to the base's dtype, and every
  operation rounds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear

from .file import LoraWeights

Arithmetic = Literal["trainer", "peft"]
Branch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class LiveLayer:
    """The branches of one layer, in list order, as a forward hook of it.

    Args:
        layer: any Linear, also a quantised one.
        dtype: what the layer runs in.
        arithmetic: see the module's head.
        device: where the layer will run; the branches' weights are put there.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype, arithmetic: Arithmetic, device: str) -> None:
        self._make = _trainer_branch if arithmetic == "trainer" else _peft_branch
        self._dtype = dtype
        self._device = device
        self._branches: list[Branch] = []
        self._hook = layer.register_forward_hook(self._add)

    def append(self, lora: LoraWeights, strength: float) -> None:
        """Adds one more branch after the others."""
        self._branches.append(self._make(lora, strength, self._dtype, self._device))

    def remove(self) -> None:
        """Takes the branches off; the layer is as it was."""
        self._hook.remove()

    def _add(self, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for branch in self._branches:
            output = branch(args[0], output)
        return output


def _trainer_branch(lora: LoraWeights, strength: float, dtype: torch.dtype, device: str) -> Branch:
    down, up = lora.down.to(device), lora.up.to(device)
    # float32 tensors, not Python numbers: two roundings in this order
    scale = torch.tensor(lora.scale, dtype=torch.float32, device=device)
    multiplier = torch.tensor([strength], dtype=torch.float32, device=device)

    def branch(x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = linear(linear(x.to(torch.float32), down), up) * scale * multiplier
        return output + added.to(output.dtype)

    return branch


def _peft_branch(lora: LoraWeights, strength: float, dtype: torch.dtype, device: str) -> Branch:
    down, up = lora.down.to(device, dtype), lora.up.to(device, dtype)
    scaling = strength * lora.alpha / lora.rank

    def branch(x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + linear(linear(x.to(dtype), down), up) * scaling

    return branch
