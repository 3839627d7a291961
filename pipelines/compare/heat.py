"""A picture of where two pictures differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .measure import absolute

if TYPE_CHECKING:
    from .pixels import Pixels

LEGEND: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (0, "0", (0, 0, 0)),
    (1, "1", (40, 40, 130)),
    (2, "2-3", (50, 90, 220)),
    (4, "4-7", (40, 170, 190)),
    (8, "8-15", (80, 200, 80)),
    (16, "16-31", (240, 220, 60)),
    (32, "32-63", (240, 130, 30)),
    (64, "64-127", (220, 40, 40)),
    (128, "128-255", (255, 255, 255)),
)
"""The least difference in levels, the range in words, the colour: a single level is seen, and each step doubles."""


def heat_map(first: Pixels, second: Pixels) -> Pixels:
    """The largest difference of each pixel's three values, in the colours of :data:`LEGEND`.

    Args:
        first, second: uint8 [H, W, 3] of one size.

    Returns:
        uint8 [H, W, 3].
    """
    import numpy as np

    largest = absolute(first, second).max(axis=2)
    steps = np.searchsorted([low for low, _, _ in LEGEND], largest, side="right") - 1
    return np.array([colour for _, _, colour in LEGEND], np.uint8)[steps]
