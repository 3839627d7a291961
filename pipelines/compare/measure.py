"""How far apart two pictures of one size are, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .pixels import check_pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .pixels import Pixels

_BLOCK = 8  # pixels a side; JPEG's blocks, and a latent pixel of most models
# keeps two plain pictures comparable; SSIM's second constant
_STABLE = (0.03 * 255) ** 2


@dataclass(frozen=True)
class Difference:
    """The difference of two pictures of one size; a value is one channel of one pixel, a level 1 of 255.

    Attributes:
        values: in a picture.
        differing: values that are not the same.
        maximum: levels.
        mean: absolute, over all values, in levels.
        mean_square: over all values, in levels squared.
        agreement: 1 for the same large shapes and colours, 0 for unrelated ones, below for a negative: Lin's
            concordance of the means of blocks of 8 x 8 pixels. Noise, grain and JPEG's artefacts hardly move it.
    """

    values: int
    differing: int
    maximum: int
    mean: float
    mean_square: float
    agreement: float

    @property
    def share(self) -> float:
        """Of the values that are not the same, 0..1."""
        return self.differing / self.values

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
        return 10 * math.log10(255**2 / self.mean_square) if self.mean_square else math.inf


def difference(first: Pixels, second: Pixels) -> Difference:
    """Measures two pictures, uint8 [H, W, 3].

    Raises:
        InputError: one is no picture, or their sizes are not the same.
    """
    check_pixels("The first picture", first)
    check_pixels("The second picture", second)
    if first.shape != second.shape:
        raise InputError(
            f"The pictures are {size_of(first)} and {size_of(second)} pixels: only those of one size have a difference."
        )
    levels = absolute(first, second)
    square = int((levels.astype("int64") ** 2).sum())
    return Difference(
        levels.size,
        int((levels > 0).sum()),
        int(levels.max()),
        int(levels.sum(dtype="int64")) / levels.size,
        square / levels.size,
        _agreement(_block_means(first), _block_means(second)),
    )


def absolute(first: Pixels, second: Pixels) -> NDArray[np.int16]:
    """The absolute difference of each value, in levels."""
    import numpy as np

    return np.abs(first.astype(np.int16) - second.astype(np.int16))


def size_of(pixels: Pixels) -> str:
    """``width x height`` in words."""
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _block_means(pixels: Pixels) -> NDArray[np.float64]:
    """The mean of each block and channel; blocks at the right and lower edge may be smaller."""
    import numpy as np

    rows, columns = (np.arange(0, side, _BLOCK) for side in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.float64), columns, axis=1)
    heights, widths = (np.diff([*starts, side]) for starts, side in zip((rows, columns), pixels.shape[:2], strict=True))
    return sums / (heights[:, None, None] * widths[None, :, None])


def _agreement(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    centre_1, centre_2 = first.mean(), second.mean()
    covariance = ((first - centre_1) * (second - centre_2)).mean()
    spread = first.var() + second.var() + (centre_1 - centre_2) ** 2
    return float((2 * covariance + _STABLE) / (spread + _STABLE))
