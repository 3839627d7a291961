"""Hangs live branches on a layer: the layer's weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .kinds.branches import RowsBranch

if TYPE_CHECKING:
    from .kinds.branch import Branch, Write

_CHILD = "aitk_lora"  # the branches are a child of their layer, so that they move between devices with it


class LiveLayer:
    """The branches of one layer, in list order, behind a forward hook of it.

    Args:
        layer: any Linear, also a quantised one.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._branches = nn.ModuleList()
        self._numbers: list[int] = []
        layer.add_module(_CHILD, self._branches)
        self._hook = layer.register_forward_hook(self._add)

    def append(self, number: int, branch: Branch, rows: tuple[int, int] | None) -> None:
        """Adds one more branch after the others, on the device where the layer is.

        Args:
            number: of its LoRA.
            branch: see :meth:`.kinds.kind.Adapter.branch`.
            rows: first row and the one after the last of the layer's weight that it changes; None is all of them.
        """
        if rows is not None:
            branch = RowsBranch(branch, rows)
        self._numbers.append(number)
        device = cast("torch.Tensor", self._layer.weight).device
        self._branches.append(branch if device.type == "cpu" else branch.to(device))

    def set_strength(self, number: int, strength: float, write: Write) -> None:
        """Gives the branches of one LoRA another strength; ``write`` sets a tensor of a module, wherever that is."""
        for own, branch in zip(self._numbers, self._branches, strict=True):
            if own == number:
                cast("Branch", branch).set_strength(strength, write)

    def remove(self) -> None:
        """Takes the branches off; the layer is as it was."""
        self._hook.remove()
        delattr(self._layer, _CHILD)

    def _add(self, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for branch in self._branches:
            output = branch(layer, args[0], output)
        return output
