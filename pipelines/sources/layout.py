"""How a single file names a part's tensors, as data that the models state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files.header import TensorInfo

if TYPE_CHECKING:
    import torch

    from ..packed import PackedTensor

Infos = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Place:
    """Where a stored tensor, or some rows of it, goes.

    Attributes:
        name: in the model.
        rows: first row and the one after the last; None is all of them.
        shape: to which it is reshaped; None leaves it.
    """

    name: str
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None

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
        if self.shape is not None and isinstance(stored, torch.Tensor):
            return stored.reshape(self.shape)
        return stored


@dataclass(frozen=True)
class Layout:
    """One way to name a part's tensors in a single file.

    Attributes:
        prefixes: what may stand before the names; the first one under which the signature occurs is taken.
        signature: names, all of which a file of this layout has.
        places: the file's names, without the prefix -> where each tensor goes; nowhere where the model does not use it;
            names that are left out have no place. Raises ValueError with the reason where shapes make no sense.
    """

    prefixes: Sequence[str]
    signature: Sequence[str]
    places: Callable[[Infos], Mapping[str, Sequence[Place]]]

    def prefix_in(self, infos: Infos) -> str | None:
        """The prefix under which a file has this layout; None where it has another."""
        for prefix in self.prefixes:
            if all(prefix + name in infos for name in self.signature):
                return prefix
        return None


@dataclass(frozen=True)
class SingleFiles:
    """What single files of a part look like.

    Attributes:
        layouts: the ways to name its tensors.
        config: the model's names -> configuration; raises ValueError with the reason where shapes make no sense.
        tokenizer: end of the name of the tensor that is a sentencepiece model; empty where there is none.
    """

    layouts: tuple[Layout, ...]
    config: Callable[[Infos], dict[str, Any]]
    tokenizer: str = ""
