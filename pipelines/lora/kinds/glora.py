"""GLoRA: W' = W + m * (W A + B) * alpha / rank, with A = a1 a2 and B = b1 b2.

LyCORIS has a1 [in, rank], a2 [rank, in], b1 [out, rank] and b2 [rank, in], on a convolution b2 with its kernel, while
A, the same at every place of it, has none. Up to its version 1.8 they were the other way round: A = a2 a1, B = b2 b1.
The shapes tell, and where both would do the rank does: it is the smaller number. Sources: LyCORIS
lycoris/modules/glora.py, make_weight, of either version; ComfyUI comfy/weight_adapter/glora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import Kind, Shape, effective_alpha, product
from .of_weight import OfWeight

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo


@dataclass(frozen=True, eq=False)
class GLora(OfWeight):
    """``a_up`` [in, rank], ``a_down`` [rank, in], ``b_up`` [out, rank], ``b_down`` [rank, in * kernel]."""

    a_up: torch.Tensor
    a_down: torch.Tensor
    b_up: torch.Tensor
    b_down: torch.Tensor
    scale: float

    @property
    def is_zero(self) -> bool:
        first, second = ((up.any(), down.any()) for up, down in ((self.a_up, self.a_down), (self.b_up, self.b_down)))
        return not all(map(bool, first)) and not all(map(bool, second))

    def rows(self, first: int, last: int) -> GLora:
        return GLora(self.a_up, self.a_down, self.b_up[first:last], self.b_down, self.scale)

    def changed(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        # a kernel's axes aside
        by_input = weight.unflatten(1, (len(self.a_up), -1)).transpose(1, 2)
        first = (by_input @ self.a_up @ self.a_down).transpose(1, 2).flatten(1)
        return weight + (first + self.b_up @ self.b_down) * self.scale * strength


_ROLES = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")
# up and down of A, then of B
_ORDERS = (("glora_a1", "glora_a2", "glora_b1", "glora_b2"), ("glora_a2", "glora_a1", "glora_b2", "glora_b1"))


def _order(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str, str, str]:
    """Which are up and down of A and of B."""
    fitting = [order for order in _ORDERS if _fits(*(shapes[role] for role in order))]
    if not fitting:
        raise ValueError(f"{', '.join(f'{role[6:]} {list(shapes[role])}' for role in _ROLES)} do not multiply")
    return min(fitting, key=lambda order: shapes[order[1]][0])


def _fits(a_up: tuple[int, ...], a_down: tuple[int, ...], b_up: tuple[int, ...], b_down: tuple[int, ...]) -> bool:
    rank, columns = a_down[:2]
    return a_up[:2] == (columns, rank) and b_up[1] == rank and b_down[:2] == (rank, columns)


def _shape(infos: Mapping[str, TensorInfo], whole: tuple[int, ...]) -> Shape:
    shapes = {role: infos[role].shape for role in _ROLES}
    if any(len(shape) < 2 or 0 in shape for shape in shapes.values()):
        raise ValueError("a1, a2, b1 and b2 are no matrices")
    a_up, a_down, b_up, b_down = _order(shapes)
    weight, _ = product(infos[a_up], infos[a_down], "a1 and a2")
    if set(weight[2:]) - {1}:
        raise ValueError(f"a1 and a2 {list(shapes['glora_a1'])} and {list(shapes['glora_a2'])} have kernels")
    return Shape(*product(infos[b_up], infos[b_down], "b1 and b2"))


def _make(tensors: Mapping[str, torch.Tensor]) -> GLora:
    order = _order({role: tuple(tensors[role].shape) for role in _ROLES})
    a_up, a_down, b_up, b_down = (tensors[role].flatten(1) for role in order)
    rank = len(a_down)
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    return GLora(a_up, a_down, b_up, b_down, effective_alpha(alpha, rank) / rank)


KIND = Kind(
    title="GLoRA",
    suffixes={**{f".{role[6:]}.weight": role for role in _ROLES}, ".alpha": "alpha"},
    complete=(frozenset(_ROLES),),
    shape=_shape,
    make=_make,
    of_weight=True,
)
