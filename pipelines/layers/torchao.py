"""Weights quantised by torchao, as AI Toolkit quantises them: its ``float8`` and ``int8``.

torchao is not required: these types are refused where it is missing. What it makes, and how it computes with that, is
its own; AI Toolkit pins 0.10.0, and other versions may round otherwise.

Source: AI Toolkit toolkit/util/quantize.py: ``Float8WeightOnlyConfig`` and ``Int8WeightOnlyConfig`` with their
defaults, on each Linear layer by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import InputError

QType = Literal["float8", "int8"]
QTYPES: tuple[QType, ...] = get_args(QType)


class TorchAO:
    """See :class:`.holding.Holding`.

    Args:
        qtype: AI Toolkit's name of the type.
    """

    def __init__(self, qtype: QType) -> None:
        self._qtype = qtype

    def takes(self, layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear)

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        # of 0.10.0, in which int8 has a zero point of 64 bits for each row; others differ by some bytes a row
        row = dtype.itemsize + (torch.int64.itemsize if self._qtype == "int8" else 0)
        return torch.Size(shape).numel() + shape[0] * row

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        quantization: Any = _quantization()
        layer: Any = model.get_submodule(name)
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        configs = {"float8": quantization.Float8WeightOnlyConfig, "int8": quantization.Int8WeightOnlyConfig}
        quantization.quantize_(layer, configs[self._qtype]())
        # the layer's class does not tell that its weight is quantised
        layer.weight_qtype = self._qtype


def check_torchao(qtype: str) -> None:
    """Raises InputError where torchao is missing, or cannot be used with this torch."""
    wanted = f"{qtype} is a type of torchao, which"
    if find_spec("torchao") is None:
        raise InputError(
            f"{wanted} is not installed. Install it in ComfyUI's Python (AI Toolkit has torchao 0.10.0), or choose "
            "another quantization on AITK Runtime Options."
        )
    try:
        _quantization()
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise InputError(
            f"{wanted} cannot be imported with torch {torch.__version__} ({type(error).__name__}). Install a torchao "
            "that fits it, or choose another quantization on AITK Runtime Options."
        ) from error


def _quantization() -> Any:
    """torchao's module of these types."""
    return import_module("torchao.quantization.quant_api")
