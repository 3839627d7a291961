"""What the engine asks of the machine that it is on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .ram import total_ram

if TYPE_CHECKING:
    from .plan import DeviceMemory


class Machine(Protocol):
    """A compute device and the computer around it."""

    def device(self) -> str:
        """The compute device, e.g. ``"cuda:0"`` or ``"cpu"``."""
        ...

    def make_room(self, size: int) -> None:
        """Asks for ``size`` free bytes on the compute device before something is put there."""
        ...

    def device_memory(self) -> DeviceMemory | None:
        """The compute device's memory; None where it has none of its own, or nothing is known of it."""
        ...

    def ram(self) -> int:
        """The computer's memory in total, in bytes; the same in every run."""
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

    def device(self) -> str:
        return self.name

    def make_room(self, size: int) -> None:
        """Nothing else is there."""

    def device_memory(self) -> DeviceMemory | None:
        return self.memory

    def ram(self) -> int:
        return self.total
