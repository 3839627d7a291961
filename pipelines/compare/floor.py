"""How far a picture is from itself when only the kernels change: what no verdict can claim less than.

How far 57 recorded pictures of five tiny models in bfloat16 are from ours on an AMD CPU with AVX-512, and how far ours
moves when its kernels change. The recordings are of an Intel CPU, Z-Image's of its AVX-512 alone, the others with AMX:

=================================  ======  ============  ======  ========  =======  =============
ours against                       FLUX.2  FLUX.2 klein  Lumina  OmniGen2  Z-Image  covers, of 57
=================================  ======  ============  ======  ========  =======  =============
the recorded picture               1.46    3.05          1.06    0.79      0.00     -
ours, attention in single steps    1.47    3.23          1.10    2.00      2.43     57
ours without oneDNN                1.46    2.84          0.77    0.77      2.35     48
ours in the plainest instructions  1.49    3.44          1.03    1.95      2.45     57
ours, all for AVX2                 1.45    3.05          0.87    0.88      2.35     51
ours with oneDNN's AVX-512 alone   0       0             0       0         0        10
ours with 2 threads instead of 1   0       0             0       0         0        10
=================================  ======  ============  ======  ========  =======  =============

Medians of mean squares, in levels squared; *covers* counts pictures whose distance to the recorded one the change
reaches, see :func:`covers`; ten of them are equal to the recorded one. With attention in single steps, a recorded
picture was farther by 1.24 times in its mean square, and twice in its maximum, at the most.

What else is no larger than such a floor, on three pictures of Lumina: float32 instead of bfloat16, a live LoRA
instead of a merged one, a LoRA rounded to float16 (mean squares of 0.6 to 1.4), at times a text encoder in qfloat8
(1.1 to 1.9) and a guidance of 3.9 instead of 4. A transformer in qfloat8 (5 to 8) and a LoRA at nine tenths (3.5 to
5) are always farther.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .measure import Difference, difference, size_of
from .pixels import as_stored, check_pixels

if TYPE_CHECKING:
    from ..jobs.job import Format
    from .pixels import Pixels

SAME = 0.9  # agreement; between 0.975 and 0.74, see the table in comparison.py
# how much farther apart than the floor's two pictures others may be, and still differ by no more than kernels do
_MEAN_SQUARES = 1.5
_MAXIMA = 2.0


@dataclass(frozen=True, eq=False)
class Rendering:
    """Our picture once more, with other kernels.

    Attributes:
        kernels: which, in words that stand in brackets, e.g. ``without oneDNN``.
        pixels: uint8 [H, W, 3]; None where it could not be rendered.
        problem: why not; empty where it could.
    """

    kernels: str
    pixels: Pixels | None
    problem: str = ""


@dataclass(frozen=True)
class Floor:
    """Ours against a rendering of it.

    Attributes:
        kernels: as of the rendering.
        difference: None where there is no rendering.
        problem: why there is none.
    """

    kernels: str
    difference: Difference | None
    problem: str = ""


def floor_of(ours: Pixels, other: Rendering, format: Format | None = None) -> Floor:
    """Measures a rendering against ours.

    Args:
        ours: as it is compared.
        other: the rendering, before it went through a file.
        format: of the file that it goes through; None for none.

    Returns:
        With a problem where it is not a rendering of our picture.
    """
    if other.pixels is None:
        return Floor(other.kernels, None, other.problem)
    check_pixels("The floor", other.pixels)
    pixels = other.pixels if format is None else as_stored(other.pixels, format).pixels
    if pixels.shape != ours.shape:
        return Floor(other.kernels, None, f"The floor is {size_of(pixels)} pixels, and our picture {size_of(ours)}.")
    noise = difference(ours, pixels)
    if noise.agreement < SAME:
        # or anything would be as near as this
        said = f"The floor is another picture than ours (agreement {noise.agreement:.2f})."
        return Floor(other.kernels, None, said)
    return Floor(other.kernels, noise)


def covers(floor: Floor, found: Difference) -> bool:
    """Whether a difference is no larger than that of other kernels."""
    noise = floor.difference
    return (
        noise is not None
        and found.mean_square <= _MEAN_SQUARES * noise.mean_square
        and found.maximum <= _MAXIMA * noise.maximum
    )


def until_covered(floors: Iterable[Floor], found: Difference) -> Iterator[Floor]:
    """Takes floors until one covers the difference: each may be a rendering that takes minutes."""
    for floor in floors:
        yield floor
        if covers(floor, found):
            return


def deciding(floors: Iterable[Floor], found: Difference) -> Floor | None:
    """The floor that covers a difference, else the farthest; None where nothing was measured."""
    measured = [(covers(one, found), one.difference.mean_square, one) for one in floors if one.difference is not None]
    return max(measured, key=lambda one: one[:2])[2] if measured else None
