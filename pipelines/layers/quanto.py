"""Weights quantised by optimum-quanto, as AI Toolkit quantises them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import FileError

QType = Literal["qfloat8", "qint8", "qint4", "qint2", "qfloat8_e5m2", "qfloat8_e4m3fnuz"]
QTYPES: tuple[QType, ...] = get_args(QType)

# bits of a value, where it is not a byte
_BITS = {"qint4": 4, "qint2": 2}
# values of a row that share a scale, the first that divides the row (optimum-quanto nn/qmodule.py); a row that is no
# longer than the first has one scale
_GROUPS = (128, 96, 64, 32)
# of rows that optimum-quanto's bfloat16 kernel for qint4 takes at once on a CPU, where groups are the largest
_KERNEL_ROWS = 16


class Quanto:
    """See :class:`.holding.Holding`.

    Args:
        qtype: optimum-quanto's name of the type.
    """

    def __init__(self, qtype: QType) -> None:
        self._qtype = qtype

    def takes(self, layer: nn.Module, name: str) -> bool:
        # the layers that optimum-quanto has a form of
        return isinstance(layer, nn.Linear | nn.Conv2d)

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        rows, values = shape[0], torch.Size(shape).numel()
        # two scales of the layer's input and output, beside those of its weight
        scales = 2
        if self._qtype not in _BITS:
            return values + (rows + scales) * dtype.itemsize
        # of the rows that it has, or of one for each group; and each has a scale and a shift
        length = _group(values // rows) or values // rows
        rows = values // length
        return -(-rows * _BITS[self._qtype] // 8) * length + (2 * rows + scales) * dtype.itemsize

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        from optimum import quanto

        self._check(name, weight, where)
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

    def _check(self, name: str, weight: torch.Tensor, where: str) -> None:
        kernel = self._qtype == "qint4" and weight.dtype == torch.bfloat16 and weight.ndim == 2
        rows, length = weight.shape[0], weight.shape[1:].numel()
        if kernel and _group(length) == _GROUPS[0] and rows % _KERNEL_ROWS:
            raise FileError(
                f"{where}: '{name}.weight' has {rows} rows, and in bfloat16 optimum-quanto's qint4 takes multiples of "
                f"{_KERNEL_ROWS}. Choose uint4, or float32."
            )


def _group(length: int) -> int | None:
    """How many values of a row of this length share a scale in a type of less than a byte; None is all."""
    if length <= _GROUPS[0]:
        return None
    return next((group for group in _GROUPS if length % group == 0), None)
