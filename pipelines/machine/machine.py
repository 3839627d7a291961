"""What the engine asks of the machine that it is on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .guests import Guests
from .ram import total_ram

if TYPE_CHECKING:
    from .plan import DeviceMemory
    from .residence import Residence


class Machine(Protocol):
    """A compute device and the computer around it."""

    def device(self) -> str:
        """The compute device, e.g. ``"cuda:0"`` or ``"cpu"``."""
        ...

    def admit(self, guest: Residence, beside: int) -> None:
        """Brings a part to the device before it is used, and lets others leave that are in the way.

        From then on the machine may send it away, wholly or its last blocks, whenever no run uses it.

        Args:
            guest: the part; as much of it comes as there is room for.
            beside: bytes that its run needs there beside its weights.
        """
        ...

    def make_room(self, size: float) -> None:
        """Asks for ``size`` free bytes on the compute device: whatever no run uses may leave."""
        ...

    def device_memory(self) -> DeviceMemory | None:
        """The compute device's memory; None where it has none of its own, or nothing is known of it."""
        ...

    def ram(self) -> int:
        """The computer's memory in total, in bytes; the same in every run."""
        ...

    def processes(self) -> int:
        """How many processes, each with a device of its own, render each picture together."""
        ...


@dataclass
class PlainMachine:
    """A machine that nothing else runs on.

    Attributes:
        name: of the device.
        memory: the device's.
        total: bytes of the computer's memory.
    """

    name: str = "cpu"
    memory: DeviceMemory | None = None
    total: int = field(default_factory=total_ram)
    _guests: Guests = field(default_factory=Guests, init=False, repr=False, compare=False)

    def device(self) -> str:
        return self.name

    def admit(self, guest: Residence, beside: int) -> None:
        self._guests.admit(guest, beside, self.memory)

    def make_room(self, size: float) -> None:
        self._guests.make_room(size)

    def device_memory(self) -> DeviceMemory | None:
        return self.memory

    def ram(self) -> int:
        return self.total

    def processes(self) -> int:
        return 1
