"""How a layer holds its weight: dense, or in one of the forms below. Each form answers the same three questions.

A weight that its file packs (GGUF, scaled float8) stays packed, whatever the user chose: see ``packed_linear.py``.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..errors import InputError
from . import float8, quanto, torchao, uintx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..options import DType, Quantization

# what Apple's MPS, which has no 8-bit floating point, cannot hold
FLOAT8_FORMS = ("qfloat8", "qfloat8_e5m2", "qfloat8_e4m3fnuz", "float8", float8.NAME, "scaled float8")


class Holding(Protocol):
    """One form of weights."""

    def takes(self, layer: nn.Module, name: str) -> bool:
        """Whether the weight of this layer, called so in its model, is held in this form."""
        ...

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of a weight of this shape, in a model that runs in ``dtype``."""
        ...

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        """Puts a weight, in the run's dtype, into the layer of this name.

        Raises:
            FileError: the form cannot hold its values; ``where`` names the source.
        """
        ...


class Selected:
    """A form for some layers.

    Args:
        form: theirs.
        plain: names of layers that stay dense, with ``*`` for any letters; a name stands for what is below it, too.
        only: names of the layers that alone are held so; empty is all but those.
    """

    def __init__(self, form: Holding, plain: Sequence[str], only: Sequence[str] = ()) -> None:
        self._form = form
        self._plain = plain
        self._only = frozenset(only)

    def takes(self, layer: nn.Module, name: str) -> bool:
        if self._only and name not in self._only:
            return False
        return self._form.takes(layer, name) and not any(fnmatch(name, pattern) for pattern in self._plain)

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return self._form.size(shape, dtype)

    def hold(self, model: nn.Module, name: str, weight: torch.Tensor, where: str) -> None:
        self._form.hold(model, name, weight, where)


def holding_of(quantization: Quantization, plain: Sequence[str] = (), only: Sequence[str] = ()) -> Holding | None:
    """The form that a choice means, of the layers that :class:`Selected` says; None where every weight is dense."""
    form = _FORMS.get(quantization)
    return None if form is None else Selected(form, plain, only)


def check_holding(quantization: Quantization, device: str, dtype: DType) -> None:
    """Raises InputError where a choice cannot be had on this machine; says what is missing."""
    if quantization in torchao.QTYPES:
        torchao.check_torchao(quantization)
    if quantization == "qint4" and dtype != "float32" and device != "cpu":
        # it packs them anew for a kernel of each device: on the way to a GPU on the CPU, by a product with as many
        # numbers as the layer has columns squared, and in float16 with a kernel that is compiled first
        raise InputError(
            f"qint4 in {dtype} runs on the CPU alone: on {device} optimum-quanto would pack its weights anew each time "
            "that they come. Choose uint4 on AITK Runtime Options, or float32 on Load AITK Model."
        )


_FORMS: Mapping[str, Holding] = {
    float8.NAME: float8.Storage(),
    **{name: quanto.Quanto(name) for name in quanto.QTYPES},
    **{name: torchao.TorchAO(name) for name in torchao.QTYPES},
    **{name: uintx.UIntX(bits) for name, bits in uintx.NAMES.items()},
}


class Weighted(Protocol):
    """A linear layer, or some rows of one."""

    @property
    def weight(self) -> Any: ...


def dense_weight(layer: Weighted, rows: tuple[int, int] | None = None) -> torch.Tensor:
    """A layer's weight in float32, however the layer holds it; of ``rows`` alone where given."""
    weight = layer.weight
    if not isinstance(weight, torch.Tensor):
        # those of this pack's own layers
        return (weight if rows is None else weight.rows(*rows)).dequantize().to(torch.float32)
    # quanto's and torchao's; a plain tensor has a method of this name too, for another use
    values = weight.dequantize() if hasattr(layer, "weight_qtype") else weight
    return (values if rows is None else values[slice(*rows)]).to(torch.float32)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts another layer in the place of the one of this name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)
