"""Where the tensors of a loaded part are: at home in CPU memory, and on the compute device as far as there is room.

The device gets copies that stay there from run to run, until something else needs the room. Home keeps its own: leaving
copies nothing back and cannot fail. Memory that CPU and GPU share (Apple's MPS) holds no second copy: there the tensors
are moved there and back.

Why not a library's: diffusers' group offloading streams all blocks or none and assigns ``.data``, which tensors of
optimum-quanto do not follow; accelerate sends every module back after each call. Neither leaves some blocks on the
device, nor gives some of them up when another model needs the room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from .transfer import Transfer
from .unit import Unit, stores

if TYPE_CHECKING:
    import torch
    from torch import nn

EVERYTHING = float("inf")  # bytes


class Residence:
    """One loaded part on a device, wholly or without its last blocks.

    Args:
        module: the part, filled, on the CPU.
        blocks: those of its modules that can come for their own call alone, in the order of their calls.
        device: where it runs.
        gone: called when a part is given up whose device is its home: there it can only be dropped.

    Attributes:
        module: the part.
        device: where it runs.
        most_there: how many blocks may stay on the device; the rest come for their call, whatever the room.
        whole: whether all of it comes, whatever the room.
        ticket: what the manager of the device knows it by; the manager's alone.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], device: str, gone: Callable[[], None]) -> None:
        self.module = module
        self.device = device
        self.most_there = len(blocks)
        self.whole = False
        self.ticket: Any = None
        self._transfer = Transfer(device)
        self._roots = list(blocks)
        self._blocks = [Unit(lambda block=block: list(block.modules()), self._transfer) for block in blocks]
        self._rest = Unit(self._outside, self._transfer)
        self._gone = gone
        self._visits = 0
        # a part may be dropped in one thread while the manager of the device sends it away in another
        self._leaving = threading.Lock()

    @property
    def at_home(self) -> bool:
        """Whether the device is where the part lies anyway."""
        return self.device == "cpu"

    @property
    def moved(self) -> int:
        """Bytes that were copied to the device so far."""
        return self._transfer.moved

    @property
    def size(self) -> int:
        """Bytes of all its tensors."""
        return sum(unit.size for unit in self._units())

    @property
    def there(self) -> int:
        """Bytes on the device now."""
        return sum(unit.size for unit in self._units() if self.at_home or unit.there)

    @property
    def streamed(self) -> int:
        """How many blocks come for their own call alone, as things are."""
        return 0 if self.at_home else sum(not unit.there for unit in self._blocks)

    def bring(self, room: float) -> int:
        """Brings what is not a block, and blocks from the first on, as far as ``room`` more bytes go.

        Returns:
            Bytes that came; negative where blocks left that may not stay.
        """
        if self.at_home:
            return 0
        before = self.there
        with _usable_anywhere():
            for unit in self._blocks[self.most_there :]:
                unit.leave()
            if self.most_there < len(self._blocks) or self.size - before > room:
                # blocks that come for their calls: the one that computes, and the next
                room -= sum(sorted(unit.size for unit in self._blocks)[-2:])
            self._rest.come()
            for unit in self._blocks[: self.most_there]:
                if not (self.whole or unit.there) and self.there - before + unit.size > room:
                    break
                # also one that is there: branches of LoRAs may have joined it
                unit.come()
        return self.there - before

    def leave(self, size: float) -> int:
        """Gives up at least ``size`` bytes of the device, from the last block on; nothing while a run uses it.

        Returns:
            Bytes that were given up.
        """
        before = self.there
        if self._visits or not before:
            return 0
        if self.at_home:
            self._gone()
            return before
        with self._leaving, _usable_anywhere():
            for unit in (*reversed(self._blocks), self._rest):
                if before - self.there >= size:
                    break
                unit.leave()
            return before - self.there

    def drop(self) -> None:
        """Gives up all tensors, those at home too: whoever still holds the module holds no memory with it."""
        with self._leaving:
            for module in self.module.modules():
                for store in stores(module):
                    store.update(dict.fromkeys(store))
            for unit in self._units():
                unit.forget()

    @contextmanager
    def visit(self) -> Iterator[nn.Module]:
        """Yields the module for a run; blocks that are not on the device come for their calls."""
        away = (
            [] if self.at_home else [pair for pair in zip(self._roots, self._blocks, strict=True) if not pair[1].there]
        )
        hooks: list[Any] = []
        self._visits += 1
        try:
            for index, (root, unit) in enumerate(away):
                following = away[(index + 1) % len(away)][1]
                hooks.append(root.register_forward_pre_hook(lambda *_, pair=(unit, following): _enter(*pair)))
                hooks.append(root.register_forward_hook(lambda *_, unit=unit: unit.leave(), always_call=True))
            yield self.module
        finally:
            for hook in hooks:
                hook.remove()
            for _, unit in away:
                unit.leave()
            self._visits -= 1

    # ---- changes to the part, wherever it is ----

    def home(self, module: nn.Module, name: str) -> torch.Tensor:
        """A module's tensor as it is at home; where nothing is kept there, on the device."""
        return next(
            (kept for unit in self._units() if (kept := unit.home(module, name)) is not None), getattr(module, name)
        )

    def homes(self) -> Iterator[torch.Tensor]:
        """All its tensors at home, those twice that it has twice."""
        for module in self.module.modules():
            for store in stores(module):
                yield from (self.home(module, name) for name, value in store.items() if value is not None)

    def changed(self, module: nn.Module, name: str) -> None:
        """To be called after a tensor that :meth:`home` gave was written to: its copy on the device follows."""
        for unit in self._units():
            unit.refresh(module, name)

    def replace(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        """Puts another tensor, at home, in a tensor's place."""
        if not any(unit.replace(module, name, value) for unit in self._units()):
            setattr(module, name, value)

    def _units(self) -> Iterator[Unit]:
        yield self._rest
        yield from self._blocks

    def _outside(self) -> list[nn.Module]:
        inside = {id(inner) for block in self._roots for inner in block.modules()}
        return [inner for inner in self.module.modules() if id(inner) not in inside]


def _usable_anywhere() -> AbstractContextManager[None]:
    """Around what makes tensors: ComfyUI sends parts away in inference mode, and a run cannot write to its tensors."""
    import torch

    return torch.inference_mode(False)


def _enter(unit: Unit, following: Unit) -> None:
    unit.come()
    if following is not unit:
        following.begin()
