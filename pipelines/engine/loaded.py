"""The parts that are in memory: whose they are, and which of them leave for others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..files.mapping import MappedFile, mapped_files
from ..machine.plan import usable_ram

if TYPE_CHECKING:
    from ..handle import Lease
    from ..lora.stack import LoraStack
    from ..machine.machine import Machine
    from ..machine.residence import Residence
    from .wanted import PartKey, Wanted


@dataclass
class LoadedPart:
    """A part in memory.

    Attributes:
        residence: where its tensors are.
        loras: what is applied to it.
        leases: of the handles that hold it.
        leased: whether handles hold it at all; else it is kept until other weights are asked for.
        files: those that its tensors lie in.
    """

    residence: Residence
    loras: LoraStack
    leases: weakref.WeakSet[Lease] = field(default_factory=weakref.WeakSet)
    leased: bool = True
    files: frozenset[MappedFile] = field(init=False)

    def __post_init__(self) -> None:
        self.files = frozenset(mapped_files(self.residence.homes()))

    def check_files(self) -> None:
        """Raises FileError where its weights are no longer those that were loaded: a file was written to."""
        for file in self.files:
            file.check()

    @property
    def held(self) -> bool:
        """Whether a lease holds it now."""
        # not their number, which counts one that is dying
        return any(True for _ in self.leases)

    def lend_to(self, lease: Lease | None) -> None:
        """Notes whose part it is."""
        if lease is None:
            self.leased = False
        else:
            self.leases.add(lease)


class LoadedParts:
    """Parts by key, the least used first.

    A part that is dropped leaves a shell: its module without tensors. ComfyUI's memory manager keeps a list of the
    modules that it knows. It takes one out when garbage collection finds the module dead, in whichever thread that is,
    and has an error where this happens while it goes through the list. So shells stay until :meth:`sweep`, which is for
    the thread that runs graphs, the only one that goes through the list.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._parts: dict[PartKey, LoadedPart] = {}
        self._shells: list[Residence] = []

    def __iter__(self) -> Iterator[PartKey]:
        return iter(list(self._parts))

    def find(self, key: PartKey) -> LoadedPart | None:
        return self._parts.get(key)

    def use(self, key: PartKey, part: LoadedPart) -> None:
        """Puts a part last: it is the latest."""
        self._parts.pop(key, None)
        self._parts[key] = part

    def drop(self, keys: Iterable[PartKey]) -> None:
        """Gives up parts, and their memory with them, whoever still holds a module; any thread may do so."""
        for key in keys:
            shell = self._parts.pop(key).residence
            shell.drop()
            self._shells.append(shell)

    def sweep(self) -> None:
        """Gives up what is left of dropped parts. Collects garbage: not for a thread beside the one that runs graphs,
        nor for a call out of the memory manager."""
        if self._shells:
            self._shells.clear()
            # modules and their hooks are circles; where nothing left, a second of looking would find nothing
            gc.collect()

    def left(self) -> list[PartKey]:
        """Those whose leases have all ended."""
        return [key for key, part in self._parts.items() if part.leased and not part.held]

    def forget_originals(self) -> None:
        """Gives up what is kept of merged tensors as they were."""
        for part in self._parts.values():
            part.loras.merging.forget_originals()

    def make_way(self, wanted: Wanted, key: PartKey) -> None:
        """Drops what must leave memory before a part is loaded.

        That is what this machine cannot hold beside it in this run; and of the parts that this run has no use for those
        that no other handle holds, and the least used others where the computer's memory is too small for all.
        """
        leaves, own = wanted.plan.part(key.part).leaves_before, set(wanted.keys.values())
        gone = [other for other in self._parts if other in own and other.part in leaves]
        room = self._room(wanted)
        for other in reversed([other for other in self._parts if other not in own]):
            room -= self._parts[other].residence.size
            if room < 0 or not self._parts[other].held:
                gone.append(other)
        self.drop(gone)
        self.sweep()
        if self.room_beside(wanted) < 0:
            self.forget_originals()

    def room_beside(self, wanted: Wanted) -> int:
        """Bytes of the computer's memory beside all parts; what is kept of merged tensors' originals is not counted."""
        own = set(wanted.keys.values())
        return self._room(wanted) - sum(part.residence.size for key, part in self._parts.items() if key not in own)

    def _room(self, wanted: Wanted) -> int:
        """Bytes of it beside the parts of a run."""
        return usable_ram(self._machine.ram()) - sum(part.weights for part in wanted.plan.parts)
