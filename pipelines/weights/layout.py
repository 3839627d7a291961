"""How stored files name a part's tensors, as data that the models state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files.header import Header, TensorInfo

if TYPE_CHECKING:
    import torch

    from ..files.packed import PackedTensor
    from .beside import Beside

Infos = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Place:
    """Where a stored tensor, or some rows of it, goes.

    Attributes:
        name: in the model.
        rows: first row and the one after the last of what is stored; None is all of them.
        shape: to which it is reshaped; None leaves it.
        into: first row and the one after the last of the model's tensor that this fills, and how many it has; None is
            all of it.
        axis: whose rows ``into`` counts.
        heads: of how many heads the rows are stored in pairs, one of either half of its head; None leaves them.
        shift: what is added to each value, in float32.
    """

    name: str
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    into: tuple[int, int, int] | None = None
    axis: int = 0
    heads: int | None = None
    shift: float = 0.0

    def info(self, stored: TensorInfo) -> TensorInfo:
        """Dtype and shape of what goes there."""
        if self.rows is not None:
            return TensorInfo(stored.dtype, (self.rows[1] - self.rows[0], *stored.shape[1:]))
        return TensorInfo(stored.dtype, self.shape or stored.shape)

    def cut(self, stored: torch.Tensor | PackedTensor) -> torch.Tensor | PackedTensor:
        """What goes there; may share memory with ``stored``."""
        import torch

        if self.rows is not None:
            first, last = self.rows
            return stored[first:last] if isinstance(stored, torch.Tensor) else stored.rows(first, last)
        if self.heads is not None:
            order = torch.arange(stored.shape[0]).reshape(self.heads, -1, 2).transpose(1, 2).reshape(-1)
            return stored[order] if isinstance(stored, torch.Tensor) else stored.reordered(order)
        if self.shift:
            return (stored if isinstance(stored, torch.Tensor) else stored.dequantize()).to(torch.float32) + self.shift
        if self.shape is not None:
            # what is packed lies in rows of its own shape
            return (stored if isinstance(stored, torch.Tensor) else stored.dequantize()).reshape(self.shape)
        return stored


@dataclass(frozen=True)
class Layout:
    """One way to name a part's tensors.

    Attributes:
        prefixes: what may stand before the names; the first one under which the signature occurs is taken.
        signature: names, all of which files of this layout have.
        places: the stored names, without the prefix -> where each tensor goes; nowhere where the model does not use it;
            names that are left out have no place. Raises ValueError with the reason where shapes make no sense.
    """

    prefixes: Sequence[str]
    signature: Sequence[str]
    places: Callable[[Infos], Mapping[str, Sequence[Place]]]

    def prefix_in(self, infos: Infos) -> str | None:
        """The prefix under which files have this layout; None where they have another."""
        for prefix in self.prefixes:
            if all(prefix + name in infos for name in self.signature):
                return prefix
        return None


def _may_be(header: Header) -> str:
    del header
    return ""


@dataclass(frozen=True)
class SingleFiles:
    """What files of a part look like, single ones and those of a folder.

    Attributes:
        layouts: the ways to name its tensors.
        config: the model's names -> configuration; raises ValueError with the reason where shapes make no sense.
        tokenizer: end of the name of the tensor that is a tokenizer; empty where there is none.
        stranger: a single file's header -> what it is, where it is of another kind than this; else an empty text.
        beside: a second file that some of them need.
    """

    layouts: tuple[Layout, ...]
    config: Callable[[Infos], dict[str, Any]]
    tokenizer: str = ""
    stranger: Callable[[Header], str] = _may_be
    beside: Beside | None = None


@dataclass(frozen=True)
class Placed:
    """A part's tensors as the model names them.

    Attributes:
        infos: the model's name -> dtype and shape; without those of which only some rows are stored.
        places: stored name -> where it goes.
    """

    infos: Mapping[str, TensorInfo]
    places: Mapping[str, Sequence[Place]]

    def needed(self, names: Iterable[str]) -> dict[str, list[Place]]:
        """Stored name -> its places among the model's ``names``; stored tensors that have none are left out."""
        wanted = set(names)
        kept = {key: [place for place in found if place.name in wanted] for key, found in self.places.items()}
        return {key: found for key, found in kept.items() if found}

    def fill(
        self, stored: Iterable[tuple[str, torch.Tensor | PackedTensor]], needed: Mapping[str, Sequence[Place]]
    ) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        """The model's tensors of stored ones, each as soon as its last rows have come."""
        from ..files.packed import stack_rows

        waiting: dict[str, dict[int, torch.Tensor | PackedTensor]] = {}
        for key, value in stored:
            for place in needed[key]:
                piece = place.cut(value)
                if place.into is None:
                    yield place.name, piece
                    continue
                rows = waiting.setdefault(place.name, {})
                rows[place.into[0]] = piece
                if sum(part.shape[place.axis] for part in rows.values()) == place.into[2]:
                    yield place.name, stack_rows([rows[first] for first in sorted(rows)], place.axis)
                    del waiting[place.name]


def placed(stored: Infos, layout: Layout | None, prefix: str) -> Placed:
    """Finds the place of everything that is stored under ``prefix``; without a layout each keeps its name.

    Raises:
        ValueError, KeyError, IndexError, ZeroDivisionError: shapes make no sense; the text says why.
    """
    named = {key.removeprefix(prefix): info for key, info in stored.items() if key.startswith(prefix)}
    table = layout.places(named) if layout is not None else {}
    places: dict[str, Sequence[Place]] = {}
    whole: dict[str, TensorInfo] = {}
    pieces: dict[str, list[tuple[Place, TensorInfo]]] = {}
    for name, info in named.items():
        places[prefix + name] = found = table.get(name, (Place(name),))
        for place in found:
            if place.into is None:
                whole[place.name] = place.info(info)
            else:
                pieces.setdefault(place.name, []).append((place, place.info(info)))
    for name, found in pieces.items():
        info = _joined(name, found)
        if info is not None:
            whole[name] = info
    return Placed(whole, places)


def _joined(name: str, pieces: Sequence[tuple[Place, TensorInfo]]) -> TensorInfo | None:
    """The tensor that pieces make together; None where some rows are missing."""
    found = sorted(pieces, key=lambda piece: piece[0].into or (0, 0, 0))
    first, axis = found[0][1], found[0][0].axis
    end = total = 0
    for place, info in found:
        assert place.into is not None
        start, stop, total = place.into
        if (info.dtype, _without(axis, info.shape)) != (first.dtype, _without(axis, first.shape)):
            raise ValueError(f"the pieces of {name} have different types or widths")
        if stop - start != info.shape[axis] or start < end:
            raise ValueError(f"a piece of {name} has {info.shape[axis]} rows")
        if start > end:
            return None
        end = stop
    return TensorInfo(first.dtype, (*first.shape[:axis], end, *first.shape[axis + 1 :])) if end == total else None


def _without(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
