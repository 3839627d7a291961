"""Hangs live branches on a layer: the layer's weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .kinds.branches import RowsBranch

if TYPE_CHECKING:
    from ..options import Arithmetic
    from .kinds.kind import Adapter

_CHILD = "aitk_lora"  # the branches are a child of their layer, so that they move between devices with it


class LiveLayer:
    """The branches of one layer, in list order, behind a forward hook of it.

    Args:
        layer: any Linear, also a quantised one.
        dtype: what the layer runs in.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        self._layer = layer
        self._dtype = dtype
        self._branches = nn.ModuleList()
        layer.add_module(_CHILD, self._branches)
        self._hook = layer.register_forward_hook(self._add)

    def append(self, adapter: Adapter, strength: float, arithmetic: Arithmetic, rows: tuple[int, int] | None) -> None:
        """Adds one more branch after the others, on the device where the layer is.

        Args:
            adapter: the change.
            strength: any number.
            arithmetic: whose roundings.
            rows: first row and the one after the last of the layer's weight that it changes; None is all of them.
        """
        branch = adapter.branch(strength, self._dtype, arithmetic)
        if rows is not None:
            branch = RowsBranch(branch, rows)
        self._branches.append(branch.to(cast("torch.Tensor", self._layer.weight).device))

    def remove(self) -> None:
        """Takes the branches off; the layer is as it was."""
        self._hook.remove()
        delattr(self._layer, _CHILD)

    def _add(self, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for branch in self._branches:
            output = branch(layer, args[0], output)
        return output
