"""From the size that was asked for to the size that is rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

MINIMUM_SIDE = 64  # pixels; both references: AI Toolkit's config_modules.py, ai-toolkit-inference's request schema


@dataclass(frozen=True)
class SizeRule:
    """How one recipe snaps a side.

    Attributes:
        floor: sides are floored to a multiple of this many pixels.
        small: what happens to a side of 1..63 pixels: it is an error, becomes 64 as in the trainer, or is rendered.
        multiple: after flooring, a side must be a multiple of this; else it is an error, as in diffusers.
    """

    floor: int
    small: Literal["error", "raise to 64", "render"]
    multiple: int


@dataclass(frozen=True)
class Size:
    """A size in pixels, and what the user should know about how it came about."""

    width: int
    height: int
    notes: tuple[str, ...] = ()


def snap(width: int, height: int, rule: SizeRule, largest: int) -> Size:
    """The size that is rendered.

    Args:
        width, height: pixels, as asked for.
        rule: the recipe's.
        largest: the longest side in pixels that the model renders.

    Raises:
        InputError: no picture of that size can be rendered; the message names a size that can.
    """
    asked = f"{width} x {height}"
    smallest = rule.multiple if rule.small == "render" else MINIMUM_SIDE
    sides = []
    notes = []
    for name, side in (("width", width), ("height", height)):
        if side <= 0:
            raise InputError(f"{name} is {side}: a picture needs at least {smallest} pixels a side.")
        if side > largest:
            raise InputError(f"{name} is {side:,}: this model renders at most {largest:,} pixels a side.")
        if side < MINIMUM_SIDE and rule.small == "error":
            raise InputError(f"{name} is {side}: the smallest side is {MINIMUM_SIDE} pixels.")
        sides.append(max(smallest, side - side % rule.floor))
    for name, side in zip(("width", "height"), sides, strict=True):
        if side % rule.multiple:
            low = max(smallest, side // rule.multiple * rule.multiple)
            high = low + rule.multiple
            raise InputError(
                f"{name} {side} (asked for: {asked}) is no multiple of {rule.multiple}, and this recipe does not snap "
                f"to it: what it reproduces fails on such a size. The nearest valid values are {low} and {high}."
            )
    if sides != [width, height]:
        notes.append(f"rendered at {sides[0]} x {sides[1]} (asked for: {asked})")
    return Size(sides[0], sides[1], tuple(notes))
