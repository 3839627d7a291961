"""The parts on a device that no other program manages: which of them leave when another one comes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from .residence import EVERYTHING, Residence

if TYPE_CHECKING:
    from .plan import DeviceMemory


class Guests:
    """Parts in the order of their last use."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[Residence]] = []

    @property
    def there(self) -> int:
        """Bytes of all of them on the device."""
        return sum(guest.there for guest in self._living() if not guest.at_home)

    def admit(self, guest: Residence, beside: int, memory: DeviceMemory | None) -> None:
        """Brings a part as far as there is room for it; the least used others leave where it needs theirs.

        Args:
            guest: the part.
            beside: bytes that its run needs beside its weights.
            memory: the device's; None where nothing is known of it: then everything comes, and nothing leaves.
        """
        others = [other for other in self._living() if other is not guest]
        self._known = [weakref.ref(other) for other in (*others, guest)]
        if memory is None:
            guest.bring(EVERYTHING)
            return
        room = memory.usable - beside - guest.there
        taken = sum(other.there for other in others)
        for other in others:
            missing = guest.size - guest.there - (room - taken)
            if missing <= 0:
                break
            taken -= other.leave(missing)
        guest.bring(room - taken)

    def make_room(self, size: float) -> None:
        """Lets parts leave until ``size`` bytes of the device were given up."""
        for guest in self._living():
            if size <= 0:
                return
            if not guest.at_home:
                size -= guest.leave(size)

    def _living(self) -> list[Residence]:
        return [guest for known in self._known if (guest := known()) is not None]
