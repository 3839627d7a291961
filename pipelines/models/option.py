"""Options that a model has and others do not, as data: the nodes make widgets of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..words import shown

if TYPE_CHECKING:
    from ..options import OptionValue


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: of the node's input; one name means one thing in every model that declares it.
        default: the value at which a run is as if there were no such option.
        tooltip: what it does, and for which models.
        place: among the options of its node, for good: saved workflows keep widgets by their position.
        low, high: of a number.
        step: of a number's widget.
        choices: of a word; empty for others.
        required: whether ComfyUI lists it among the required inputs, as some were published.
        advanced: whether most runs leave it alone: the editor may fold it away.
    """

    name: str
    default: OptionValue
    tooltip: str
    place: int
    low: float = 0.0
    high: float = 100.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    required: bool = False
    advanced: bool = False

    def check(self, value: OptionValue) -> None:
        """Raises InputError where this cannot be a value of the option."""
        if self.choices:
            if value not in self.choices:
                raise InputError(f"{self.name} {shown(value)} is unknown. Choose one of: {', '.join(self.choices)}.")
        elif isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise InputError(f"{self.name} is {shown(value)}: choose true or false.")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise InputError(f"{self.name} is {shown(value)}: choose {self.low:g} to {self.high:g}.")


# what a training job's low_vram turns on, for models whose pictures it changes; the trainer's interface sets it
VAE_TILING = Option(
    "vae_tiling",
    False,
    "Decodes a picture above 256 pixels a side in tiles, and encodes control images so: what AI Toolkit does with "
    "low_vram, which its interface sets. Another picture. Models whose pictures it does not tile ignore this.",
    place=1,
    advanced=True,
)
