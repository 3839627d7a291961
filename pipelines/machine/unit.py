"""What goes to the device and leaves it together: one block of a part, or everything that is not in a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .transfer import is_pinned, pinned, tensor_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .transfer import Transfer

_Store = dict[str, Any]


@dataclass
class _Moved:
    """A tensor on the device. ``home`` is None where it is kept nowhere else."""

    store: _Store
    home: torch.Tensor | None
    copy: torch.Tensor


class Unit:
    """Some modules' own tensors, without those of modules inside them.

    Args:
        modules: gives them; asked again each time, since LoRAs add modules and take them off.
        transfer: to the device.

    Attributes:
        there: whether they are on the device.
    """

    def __init__(self, modules: Callable[[], Sequence[nn.Module]], transfer: Transfer) -> None:
        self.there = False
        self._modules = modules
        self._transfer = transfer
        self._moved: dict[tuple[int, str], _Moved] = {}
        self._begun: tuple[dict[int, torch.Tensor], Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of its tensors, wherever they are."""
        return tensor_bytes({id(value): value for _, _, value in self._tensors()}.values())

    def begin(self) -> None:
        """Starts the way to the device, where that goes on beside what the device computes."""
        if self.there or self._begun is not None or not self._transfer.overlaps:
            return
        for store, name, value in self._tensors():
            # once: the block comes again in each step
            if not is_pinned(value):
                store[name] = pinned(value)
        values = {id(value): value for _, _, value in self._tensors()}
        copies, event = self._transfer.begin(values.values())
        self._begun = dict(zip(values, copies, strict=True)), event

    def come(self) -> None:
        """Puts copies on the device in the tensors' place; those that are there stay as they are."""
        copies: dict[int, torch.Tensor] = {}
        if self._begun is not None:
            copies, event = self._begun
            self._transfer.end(copies.values(), event)
            self._begun = None
        present = set()
        for store, name, value in self._tensors():
            key = (id(store), name)
            present.add(key)
            known = self._moved.get(key)
            if known is not None and known.copy is value:
                continue
            if id(value) not in copies:
                copies[id(value)] = self._transfer.copy(value)
            copy = copies[id(value)]
            self._moved[key] = _Moved(store, value if self._transfer.keeps_home else None, copy)
            store[name] = copy
        # modules that were taken off
        self._moved = {key: moved for key, moved in self._moved.items() if key in present}
        self.there = True

    def leave(self) -> None:
        """Puts the tensors at home back, and gives up the copies."""
        homes: dict[int, torch.Tensor] = {}
        for store, name, value in self._tensors():
            known = self._moved.get((id(store), name))
            if known is not None and known.copy is value and known.home is not None:
                store[name] = known.home
            elif self.there:
                # what has no home: a branch that was made on the device, and everything on a shared memory
                if id(value) not in homes:
                    homes[id(value)] = self._transfer.home(value)
                store[name] = homes[id(value)]
        self.forget()

    def forget(self) -> None:
        """Gives up the copies, and what is at home beside them."""
        self._begun = None
        self._moved.clear()
        self.there = False

    def home(self, module: nn.Module, name: str) -> torch.Tensor | None:
        """A tensor at home; None where it is not on the device, not kept at home, or not of this unit."""
        moved = self._find(module, name)
        return None if moved is None else moved.home

    def refresh(self, module: nn.Module, name: str) -> None:
        """Writes a tensor at home to its copy."""
        import torch

        moved = self._find(module, name)
        if moved is not None and moved.home is not None:
            with torch.no_grad():
                moved.copy.copy_(moved.home)
            self._transfer.moved += tensor_bytes([moved.copy])

    def replace(self, module: nn.Module, name: str, value: torch.Tensor) -> bool:
        """Puts another tensor in the place of one that is on the device; False where it is not."""
        moved = self._find(module, name)
        if moved is None:
            return False
        moved.copy = moved.store[name] = self._transfer.copy(value)
        moved.home = value if self._transfer.keeps_home else None
        return True

    def _find(self, module: nn.Module, name: str) -> _Moved | None:
        return next((found for store in stores(module) if (found := self._moved.get((id(store), name)))), None)

    def _tensors(self) -> Iterator[tuple[_Store, str, torch.Tensor]]:
        for module in self._modules():
            for store in stores(module):
                yield from [(store, name, value) for name, value in store.items() if value is not None]


def stores(module: nn.Module) -> tuple[_Store, _Store]:
    """Where a module keeps its own tensors."""
    return module._parameters, module._buffers
