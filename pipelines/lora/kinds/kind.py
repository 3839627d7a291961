"""What every kind states, and what its tensors can do. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from ...machine.threads import in_threads

if TYPE_CHECKING:
    import torch

    from ...files.header import TensorInfo
    from ...options import Arithmetic, MergeArithmetic
    from .branch import Branch
    from .workspace import Workspace

_PIECE = 1 << 19  # values that are computed at a time: two megabytes in float32, which stay in a CPU's cache
_ROWS = 16  # at the least: a product of fewer has kernels of its own, which add up in another order
# AI Toolkit's and PEFT's, and kohya's names of the same two matrices; adapters' names in them are taken out before
PAIR = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_A": "lora_A",
    ".lora_B": "lora_B",
    # diffusers' older names
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
}


class Adapter(Protocol):
    """The change of one parameter: tensors on the CPU, which compute in float32."""

    @property
    def is_zero(self) -> bool:
        """True where the change is zero because a factor is; such a layer is skipped, as AI Toolkit does."""
        ...

    def rows(self, first: int, last: int) -> Adapter:
        """The change of rows ``first`` to ``last`` (left out) alone; raises ValueError where that makes no sense."""
        ...

    def dense(self) -> torch.Tensor:
        """The whole change at strength 1, float32, as a matrix: a kernel's last axes are one.

        Raises NotImplementedError where it depends on the weight.
        """
        ...

    def merge(
        self, weight: torch.Tensor, strength: float, workspace: Workspace, out: torch.Tensor | None = None,
        arithmetic: MergeArithmetic = "float32",
    ) -> torch.Tensor:  # fmt: skip
        """The changed parameter in float32, on the device of the workspace, whose memory it may be in.

        Or rounded, in ``out``, a tensor of the parameter's shape and dtype on that device. Else whoever stores it
        rounds it: once. There is no inverse: a merge is undone by the weight's original, since subtracting in bfloat16
        leaves 5 to 8 % of the values changed.

        ``arithmetic`` is the recipe's. Of those that are a reference's own (:mod:`.merges`) each is for the kinds that
        the reference merges, and for matrices; all else is merged in float32. They round to the parameter's dtype, in
        which the result may be.
        """
        ...

    def branch(self, strength: float, dtype: torch.dtype, arithmetic: Arithmetic) -> Branch:
        """A module whose forward(layer, x, output) gives a linear layer's output with the change added."""
        ...


@dataclass(frozen=True)
class Shape:
    """What a layer's tensors say together.

    Attributes:
        weight: of the parameter that they change, (out, in) for a linear layer.
        rank: of the low-rank part; None where there is none.
        blocks: heights of the blocks of rows that are changed together, from the first to the last; empty where each
            row is changed by itself.
    """

    weight: tuple[int, ...]
    rank: int | None
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of change; told from others by identity.

    Attributes:
        title: for people.
        suffixes: end of a key -> role.
        complete: sets of roles that make a whole layer, ``alpha`` left out.
        shape: roles' infos, and the shape of the parameter that they are for -> their own shape; raises ValueError
            with the reason where they do not fit together. Most kinds tell their shape by themselves.
        make: roles' tensors (float32) -> adapter.
        widens: whether ``make`` takes bfloat16, float16 and float32 as they are stored, and its adapters widen them
            where they compute: a live branch may run in the file's dtype, and needs no copy then.
        mergeable: False where its trainer never merges it.
        decomposable: whether LyCORIS' ``dora_scale`` may stand beside it.
        accompanies: whether it is what other kinds' files hold beside their own, which name the file.
        of_weight: whether the change depends on the weight, so that it adds up with no other one of its file.
    """

    title: str
    suffixes: Mapping[str, str]
    complete: tuple[frozenset[str], ...]
    shape: Callable[[Mapping[str, TensorInfo], tuple[int, ...]], Shape]
    make: Callable[[Mapping[str, torch.Tensor]], Adapter]
    mergeable: bool = True
    decomposable: bool = False
    accompanies: bool = False
    of_weight: bool = False
    widens: bool = False

    @cached_property
    def roles(self) -> frozenset[str]:
        """That a layer of this kind may have."""
        return frozenset(self.suffixes.values()).union(*self.complete)


def effective_alpha(alpha: float | None, rank: int) -> float:
    """The alpha that counts: none and 0 both mean the rank, that is scale 1, to AI Toolkit, kohya and LyCORIS."""
    return alpha or float(rank)


def merged(
    weight: torch.Tensor, change: torch.Tensor, factors: Sequence[float], out: torch.Tensor | None = None,
    rounds: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """``weight`` + ``change`` times each of the factors, in this order: in the memory of ``change``, or in ``out``.

    Args:
        weight: of any floating-point dtype.
        change: float32, on the device that computes; the last axes of a convolution's kernel may be one.
        factors: a factor of 1 changes nothing, and is left out.
        out: where it goes, on the same device; it may be ``weight`` itself.
        rounds: what the change is rounded to before it is added; None is not at all.
    """
    change, weight = change.reshape(weight.shape), weight.to(change.device)
    rows = 0
    for own, base in _pieces(change, weight):
        for factor in factors:
            if factor != 1:
                own.mul_(factor)
        if rounds is not None:
            own.copy_(own.to(rounds))
        own.add_(base)
        if out is not None:
            # while it is in the processor's cache
            out[rows : rows + len(own)].copy_(own) if own.ndim else out.copy_(own)
            rows += len(own) if own.ndim else 0
    return change if out is None else out


def merged_by_rows(
    weight: torch.Tensor,
    change: Callable[[slice], torch.Tensor],
    factors: Sequence[float],
    workspace: Workspace,
    out: torch.Tensor | None = None,
    rounds: bool = False,
) -> torch.Tensor:
    """The same for a change of which any rows can be made alone, with the same bits: a product of two matrices.

    Each core of a CPU makes, adds and stores a few rows at a time: what is not in its cache costs it as much as the
    arithmetic.

    Args:
        weight: of any floating-point dtype.
        change: rows -> their change, float32, in memory that is the next call's.
        factors: as for :func:`merged`.
        workspace: where ``change`` computes.
        out: where it goes, on the same device; it may be ``weight`` itself.
        rounds: whether the change is rounded to the weight's dtype before it is added.
    """
    dtype = weight.dtype if rounds else None
    pieces = -(-weight.numel() // _PIECE)
    if out is None or workspace.device != "cpu" or len(weight) < pieces * _ROWS:
        return merged(weight, change(slice(None)), factors, out, dtype)
    ends = [number * len(weight) // pieces for number in range(pieces + 1)]
    in_threads(
        lambda rows: merged(workspace.widened(weight[rows]), change(rows), factors, out[rows], dtype),
        [slice(first, last) for first, last in pairwise(ends)],
    )
    return out


def _pieces(change: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of both, the weight's in the change's dtype where a CPU adds: two dtypes cost it six times as much."""
    import torch

    if change.dtype == weight.dtype or change.device.type != "cpu" or not weight.ndim or not weight.numel():
        yield change, weight
        return
    rows = max(1, _PIECE * len(weight) // weight.numel())
    cast = torch.empty((min(rows, len(weight)), *weight.shape[1:]), dtype=change.dtype)
    for own, base in zip(change.split(rows), weight.split(rows), strict=True):
        yield own, cast[: len(base)].copy_(base)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether any value is not zero, in a sixth of the time of ``any``."""
    import torch

    # most have one at their beginning
    return tensor.numel() > 0 and (tensor[(0,) * tensor.ndim].item() != 0 or any(map(bool, torch.aminmax(tensor))))


def matrix_product(up: TensorInfo, down: TensorInfo, names: str) -> tuple[int, int, int]:
    """(out, in, rank) of up @ down; raises ValueError where they do not multiply."""
    weight, rank = product(up, down, names)
    if len(weight) != 2:
        raise ValueError(f"{names} {list(up.shape)} and {list(down.shape)} do not multiply to one matrix")
    return weight[0], weight[1], rank


def product(up: TensorInfo, down: TensorInfo, names: str) -> tuple[tuple[int, ...], int]:
    """(weight, rank) of up @ down, where down may have a kernel; raises ValueError where they do not multiply."""
    axes = (len(up.shape), len(down.shape))
    fit = min(axes) >= 2 and axes[1] <= 5 and up.shape[1] == down.shape[0]
    if not fit or set(up.shape[2:]) - {1} or 0 in up.shape + down.shape:
        raise ValueError(f"{names} {list(up.shape)} and {list(down.shape)} do not multiply to one matrix")
    return (up.shape[0], *down.shape[1:]), up.shape[1]


def tucker_product(core: TensorInfo, first: tuple[int, ...], second: tuple[int, ...], names: str) -> tuple[int, ...]:
    """The weight of a kernel [r, s, height, width] between [r, out] and [s, in].

    Source: LyCORIS lycoris/functional/general.py. Raises ValueError where they do not fit.
    """
    shape = core.shape
    if not 3 <= len(shape) <= 5 or shape[:2] != (first[0], second[0]) or 0 in shape + first + second:
        raise ValueError(f"{names} {list(shape)} does not fit between {list(first)} and {list(second)}")
    return (first[1], second[1], *shape[2:])


def spread(core: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """A kernel [r, s, height, width] of a matrix [s, in]: [r, in * height * width]."""
    import torch

    return torch.einsum("rs...,si->ri...", core, matrix).flatten(1)
