"""The live branches: modules that add a change to what a layer gave. Each kind's own module says whose rule it is.

Their tensors are buffers, so that they move between devices with the layer that they hang on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...layers.holding import Weighted, dense_weight
from .branch import Branch, Write
from .factors import tensors_of, with_tensors
from .through import by_channel, channel_axis, convolution_of, through, through_both

if TYPE_CHECKING:
    from .kind import Adapter


class LayerRows:
    """Rows ``first`` to ``last`` (left out) of a layer, as if they were a layer of their own; ``whole`` is it.

    Rows that are None are all of them.
    """

    def __init__(self, layer: Weighted, rows: tuple[int, int] | None) -> None:
        self.whole = layer
        self._rows = rows

    @property
    def weight(self) -> torch.Tensor:
        """[last - first, in], float32; made when it is asked for: most branches do not."""
        return dense_weight(self.whole, self._rows)


class _Float32Branch(Branch):
    """Computes in float32 also where the run is under autocast, which would round every product."""

    def forward(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.add(layer, x.to(torch.float32), output)

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """``x`` in float32; what is added is cast to the dtype of ``output`` first."""
        raise NotImplementedError


class TrainerBranch(_Float32Branch):
    """float32: down, up (left out where it is None), times scale, times strength, cast, add."""

    down: torch.Tensor
    up: torch.Tensor | None
    scale: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor | None, scale: float, strength: float) -> None:
        super().__init__()
        # float32 tensors, not Python numbers: two roundings, scale first
        self._keep(
            down=down,
            up=up,
            scale=torch.tensor(scale, dtype=torch.float32),
            multiplier=torch.tensor([strength], dtype=torch.float32),
        )

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = through(layer, x, self.down) if self.up is None else through_both(layer, x, self.down, self.up)
        return plus(output, added.mul_(self.scale).mul_(self.multiplier).to(output.dtype))


class PeftBranch(Branch):
    """In the base's dtype; every operation rounds to it."""

    down: torch.Tensor
    up: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float, strength: float) -> None:
        super().__init__()
        self._alpha, self._rank = alpha, down.shape[0]
        self._keep(down=down, up=up, multiplier=torch.tensor(self._multiplier(strength), dtype=torch.float32))

    def forward(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return plus(output, times(through_both(layer, x.to(self.down.dtype), self.down, self.up), self.multiplier))

    def _multiplier(self, strength: float) -> float:
        return strength * self._alpha / self._rank


class SdScriptsBranch(Branch):
    """In the dtype of the layer's input, or of autocast around it: down, up, times strength, times scale, add."""

    down: torch.Tensor
    up: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor, scale: float, strength: float) -> None:
        super().__init__()
        self._keep(down=down, up=up, multiplier=torch.tensor(strength, dtype=torch.float32))
        self._scale = scale

    def forward(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = through_both(layer, x, self.down.to(x.dtype), self.up.to(x.dtype))
        return output + times(added, self.multiplier) * self._scale


class LoHaBranch(_Float32Branch):
    """float32; the product is made anew on each call."""

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    multiplier: torch.Tensor

    def __init__(
        self, w1_a: torch.Tensor, w1_b: torch.Tensor, w2_a: torch.Tensor, w2_b: torch.Tensor, scale: float,
        strength: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self._scale = scale
        multiplier = torch.tensor(self._multiplier(strength), dtype=torch.float32)
        self._keep(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, multiplier=multiplier)

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        change = (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b) * self.multiplier
        return output + through(layer, x, change).to(output.dtype)

    def _multiplier(self, strength: float) -> float:
        return self._scale * strength


class _FactorsBranch(_Float32Branch):
    """Of a change that is a dataclass of factors: they move with the branch, and their product is never kept."""

    def __init__(self, change: Adapter, strength: float) -> None:
        super().__init__()
        self._change = change
        self._names = list(tensors_of(change))
        self._keep(**tensors_of(change))
        self._strength = strength

    def set_strength(self, strength: float, write: Write) -> None:
        self._strength = strength

    @property
    def change(self) -> Any:
        """With the factors where the branch is."""
        return with_tensors(self._change, {name: getattr(self, name) for name in self._names})


class OfWeightBranch(_FactorsBranch):
    """The difference between the changed weight and the layer's own, in float32, made anew on each call."""

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        own = dense_weight(layer).flatten(1)
        return output + through(layer, x, self.change.changed(own, self._strength) - own).to(output.dtype)


class DecomposedBranch(_FactorsBranch):
    """The same of a decomposed weight.

    Args:
        change: what is decomposed.
        scale: [out, 1] or [1, in].
        strength: any number.
        window: see :class:`.decomposed.Decomposed`.
    """

    magnitudes: torch.Tensor

    def __init__(
        self, change: Adapter, scale: torch.Tensor, strength: float, window: tuple[int, int] | None = None
    ) -> None:
        super().__init__(change, strength)
        self._keep(magnitudes=scale)
        self._window = slice(*(window or (None,)))
        self._pieces: tuple[LayerRows, ...] = ()

    def see(self, pieces: Sequence[LayerRows]) -> None:
        """Gives it all pieces of what is changed, of which its layer is those in ``window``."""
        # in a tuple: they are no children of this module
        self._pieces = tuple(pieces)

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        own = dense_weight(layer).flatten(1)
        whole = torch.cat([piece.weight for piece in self._pieces]) if self._pieces else own
        weight = whole + self.change.dense()
        norm = torch.linalg.norm(weight, dim=1 if self.magnitudes.shape[1] == 1 else 0, keepdim=True)
        weight = weight[self._window]
        weight *= self.magnitudes / (norm + torch.finfo(torch.float32).eps)
        return output + through(layer, x, (weight - own) * self._strength).to(output.dtype)


class DoraBranch(_Float32Branch):
    """A LoRA branch and a rescaling of the changed weight's rows, both in float32."""

    down: torch.Tensor
    up: torch.Tensor
    magnitude: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor, magnitude: torch.Tensor, strength: float) -> None:
        super().__init__()
        multiplier = torch.tensor([strength], dtype=torch.float32)
        self._keep(down=down, up=up, magnitude=magnitude, multiplier=multiplier)

    def add(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = (through_both(layer, x, self.down, self.up) * self.multiplier).to(output.dtype)
        # made anew on each call, as the trainer does: kept, it would be the transformer once more in float32
        weight = dense_weight(layer).flatten(1) + (self.up @ self.down) * self.multiplier.mean()
        norm = torch.linalg.norm(weight, dim=1)
        rescaled = by_channel(layer, self.magnitude / norm - 1) * through(layer, x, weight)
        return output + (added + rescaled.to(output.dtype))


class LoKrBranch(Branch):
    """Contracts x, seen as [..., in_m, in_n], with w2 (by way of its rank), then with w1, in the layer's dtype.

    On a convolution the product is made anew on each call.
    """

    w1: torch.Tensor
    w2: torch.Tensor
    w2_b: torch.Tensor | None
    multiplier: torch.Tensor

    def __init__(
        self, w1: torch.Tensor, w2: torch.Tensor, w2_b: torch.Tensor | None, scale: float, strength: float,
        dtype: torch.dtype, window: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._keep(
            # the scale is folded into w1 after the cast
            w1=w1.to(dtype) * torch.tensor(scale, dtype=torch.float32),
            w2=w2.to(dtype),
            w2_b=None if w2_b is None else w2_b.to(dtype),
            multiplier=torch.tensor(strength, dtype=torch.float32).to(dtype),
        )
        self._inside = (w1.shape[1], (w2 if w2_b is None else w2_b).shape[1])
        self._window = slice(*(window or (None,)))

    def forward(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if convolution_of(layer) is not None:
            change = torch.kron(self.w1, self.w2 if self.w2_b is None else self.w2 @ self.w2_b)[self._window]
            return output + through(layer, x.to(change.dtype), change) * self.multiplier
        folded = x.to(self.w2.dtype).unflatten(-1, self._inside)
        if self.w2_b is None:
            folded = torch.einsum("...qs,os->...qo", folded, self.w2)
        else:
            folded = torch.einsum("...qs,rs->...qr", folded, self.w2_b)
            folded = torch.einsum("...qr,or->...qo", folded, self.w2)
        added = torch.einsum("...qo,pq->...po", folded, self.w1).flatten(-2, -1)
        return output + added[..., self._window] * self.multiplier


class RowsBranch(Branch):
    """Another branch on some rows of a layer: the values of the other rows are left as they are."""

    def __init__(self, branch: Branch, rows: tuple[int, int]) -> None:
        super().__init__()
        self.branch = branch
        self._rows = rows

    def set_strength(self, strength: float, write: Write) -> None:
        self.branch.set_strength(strength, write)

    def forward(self, layer: Weighted, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        (first, last), axis = self._rows, channel_axis(layer)
        before, own, after = output.tensor_split((first, last), dim=axis)
        return torch.cat([before, self.branch(LayerRows(layer, self._rows), x, own), after], dim=axis)


def plus(output: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Their sum, in the memory of ``change`` where that can hold it: new pages cost a CPU as much as the adding."""
    return change.add_(output) if change.dtype == output.dtype and change.shape == output.shape else output + change


def times(value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``value``, which is nobody else's, times a number in float32, rounded once: what a number of Python's gives."""
    if factor.device.type == "cpu" and not torch.compiler.is_compiling():
        # in a quarter of the time; elsewhere it would have to be waited for
        return value.mul_(factor.item())
    return (value.to(torch.float32) * factor).to(value.dtype)
