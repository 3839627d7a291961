"""Weights quantised by optimum-quanto, as AI Toolkit quantises them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn


class Quanto:
    """See :class:`.holding.Holding`.

    Args:
        qtype: optimum-quanto's name of the type.
    """

    def __init__(self, qtype: Literal["qfloat8", "qint8"]) -> None:
        self._qtype = qtype

    def takes(self, layer: nn.Module, name: str) -> bool:
        # the layers that optimum-quanto has a form of
        return isinstance(layer, nn.Linear | nn.Conv2d)

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        # a byte for each value, a scale for each row and two for the layer
        return torch.Size(shape).numel() + (shape[0] + 2) * dtype.itemsize

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        from optimum import quanto

        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        parent.get_submodule(leaf)._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        quanto.quantize(parent, weights=quanto.qtypes[self._qtype], include=leaf)
        layer: Any = parent.get_submodule(leaf)
        quanto.freeze(layer)
        if hasattr(layer.weight, "activation_qtype"):
            # without it, quanto repacks float8 weights for a Marlin kernel when they come to a CUDA device: it has to
            # be compiled there, leaves the bias out, and is not undone on the way back, so that the second picture
            # differs
            layer.weight.activation_qtype = quanto.qfloat8_e4m3fn
