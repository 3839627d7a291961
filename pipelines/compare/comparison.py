"""The verdict on two pictures that should be one, which never claims more than what was measured.

The line between the same picture and a different one was drawn on recorded training jobs of three tiny models, whose
weights are random; what follows are the extremes of all pairs of a kind:

======================================================  ============  ============  ============
the trainer's picture, or ours, against                 agreement     mean, levels  differing
======================================================  ============  ============  ============
ours in float32 with other CPU kernels                  1.000         0 to 0.0002   0 to 0.02 %
ours in bfloat16 with other CPU kernels                 1.000         0 to 0.71     0 to 51 %
a text encoder in qfloat8, ours unquantised             1.000         0.42 to 0.45  37 to 39 %
the saved LoRA of 16 bits instead of the trained one    1.000         0.01 to 0.97  0.8 to 51 %
a checkpoint of 100 to 350 steps later                  0.990 up      1.1 to 9.3    62 to 93 %
the base without the LoRA                               0.975 up      2.4 to 15.1   74 to 95 %
another seed and prompt                                 0.23 to 0.74  46 to 66      93 to 99 %
======================================================  ============  ============  ============

Another prompt with the same seed hardly changes what random weights draw (agreement 0.97 up): tiny models say nothing
of that case. With trained weights it is another picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .floor import SAME, Floor, Rendering, covers, deciding, floor_of, until_covered
from .heat import heat_map
from .measure import Difference, difference, size_of
from .perceptual import Score, lpips, ssim
from .pixels import as_stored, check_pixels, read_picture

if TYPE_CHECKING:
    from ..jobs.job import Format
    from .pixels import Pixels, StoredPicture

_GIVEN = "those of the given floor"


METRICS = ("max", "mean", "share", "psnr", "ssim", "lpips")


class Verdict(StrEnum):
    """What a comparison comes to, the nearest first."""

    IDENTICAL = "identical"
    KERNEL_NOISE = "equal up to kernel noise"
    SAME_PICTURE = "same picture, different by some levels"
    DIFFERENT = "different"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two pictures that should be one.

    Attributes:
        verdict: by the pixels.
        identical_bytes: whether ours, encoded as the trainer does, is the trainer's file; None where there is no file.
        difference: None where the sizes are not the same.
        floors: ours against ours with other kernels, in the order in which they were tried: until one explains the
            difference, and none for what is identical or different.
        ssim, lpips: measures of libraries that may be missing; they decide nothing.
        heat_map: uint8 [H, W, 3], see :data:`.heat.LEGEND`; None where the sizes are not the same.
        notes: what was left out, a sentence each.
        words: the verdict with its numbers, for a user.
    """

    verdict: Verdict
    identical_bytes: bool | None
    difference: Difference | None
    floors: tuple[Floor, ...]
    ssim: Score
    lpips: Score
    heat_map: Pixels | None
    notes: tuple[str, ...]
    words: str

    @property
    def floor(self) -> Floor | None:
        """The one that explains the difference, else the farthest; None where nothing was measured."""
        return None if self.difference is None else deciding(self.floors, self.difference)

    @property
    def caption(self) -> str:
        """The verdict in a few words, for a line under a picture."""
        if self.verdict is Verdict.IDENTICAL or self.difference is None:
            return "other size" if self.difference is None else "identical"
        found, short = self.difference, {Verdict.KERNEL_NOISE: "noise", Verdict.SAME_PICTURE: "same"}
        return f"{short.get(self.verdict, 'different')}: max {found.maximum}, mean {found.mean:.3g}, {found.share:.1%}"

    @property
    def metrics(self) -> dict[str, float | None]:
        """Six numbers for people; None where one was not measured, and for the endless PSNR of equal pictures."""
        found = self.difference
        return {
            "max": found and found.maximum,
            "mean": found and found.mean,
            "share": found and found.share,
            "psnr": found and (found.psnr if found.differing else None),
            "ssim": self.ssim.value,
            "lpips": self.lpips.value,
        }

    def as_json(self) -> dict[str, object]:
        """All but the heat map; an infinite PSNR is None, which JSON can hold."""
        return {
            "verdict": self.verdict.value,
            "words": self.words,
            "identical_bytes": self.identical_bytes,
            "difference": self.difference and _numbers(self.difference),
            "floor": self.floor and _floor_numbers(self.floor),
            "floors": [_floor_numbers(one) for one in self.floors],
            "ssim": {"value": self.ssim.value, "reason": self.ssim.reason},
            "lpips": {"value": self.lpips.value, "reason": self.lpips.reason},
            "notes": list(self.notes),
        }


def compare(ours: Pixels, trainer: Pixels, others: Iterable[Rendering] = ()) -> Comparison:
    """Compares two pictures pixel by pixel.

    Args:
        ours, trainer: uint8 [H, W, 3].
        others: ours with other kernels. Only with them can a verdict be *equal up to kernel noise*. They are asked for
            one at a time, only where the pictures are near and not the same, and only until one explains that.

    Raises:
        InputError: one of the two is no picture.
    """
    check_pixels("Our picture", ours)
    check_pixels("The trainer's picture", trainer)
    return _compared(ours, trainer, (floor_of(ours, one) for one in others), None, ())


def compare_as(ours: Pixels, trainer: Pixels, format: Format, floor: Pixels | None = None) -> Comparison:
    """Compares ours, after it went through a file of the trainer's format, with what was decoded from the trainer's.

    Args:
        ours, trainer: uint8 [H, W, 3].
        format: the job's ``sample.format``.
        floor: ours once more, rendered with other kernels; it goes through a file too.

    Raises:
        InputError: as for :func:`compare`, the floor is not a rendering of our picture, or ours is too large for the
            format.
    """
    check_pixels("Our picture", ours)
    check_pixels("The trainer's picture", trainer)
    stored = as_stored(ours, format).pixels
    return _compared(stored, trainer, _given(stored, floor, format), None, ())


def compare_with_file(ours: Pixels, file: Path, others: Iterable[Rendering] = ()) -> Comparison:
    """Compares ours with a preview of the trainer's, encoding ours as the trainer did.

    Args:
        ours: uint8 [H, W, 3].
        file: png, jpg or webp; its content tells which.
        others: as for :func:`compare`; each is encoded too.

    Raises:
        InputError: as for :func:`compare`, or ours is too large for the format.
        FileError: the file cannot be read as a picture.
    """
    trainer, stored, floors = _as_in_file(ours, file, others)
    return _compared(stored.pixels, trainer.pixels, floors, stored.content == trainer.content, trainer.notes)


def needs_another(ours: Pixels, file: Path, others: Iterable[Rendering]) -> bool:
    """Whether :func:`compare_with_file` would ask for one more rendering than these.

    Raises:
        InputError, FileError: as there.
    """
    trainer, stored, floors = _as_in_file(ours, file, others)
    if stored.pixels.shape != trainer.pixels.shape:
        return False
    found = difference(stored.pixels, trainer.pixels)
    return _near(found) and not any(covers(one, found) for one in floors)


def summary(comparisons: Sequence[Comparison]) -> str:
    """One comparison's words, or how many came to what, and the words of the one that is farthest apart."""
    if len(comparisons) == 1:
        return comparisons[0].words
    counts = Counter(one.verdict for one in comparisons)
    told = "; ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    place, farthest = max(enumerate(comparisons, 1), key=lambda one: _apart(one[1]))
    worst = "" if farthest.verdict is Verdict.IDENTICAL else f" The farthest, picture {place}: {farthest.words}"
    return f"{len(comparisons)} pictures: {told}.{worst}"


def _apart(one: Comparison) -> tuple[int, float]:
    return list(Verdict).index(one.verdict), math.inf if one.difference is None else one.difference.mean_square


def _given(ours: Pixels, floor: Pixels | None, format: Format) -> list[Floor]:
    if floor is None:
        return []
    found = floor_of(ours, Rendering(_GIVEN, floor), format)
    if found.problem:
        raise InputError(
            f"{found.problem} A floor is the same cell rendered once more with other kernels; give that, or none."
        )
    return [found]


def _as_in_file(
    ours: Pixels, file: Path, others: Iterable[Rendering]
) -> tuple[StoredPicture, StoredPicture, Iterator[Floor]]:
    """The trainer's picture, ours as it is in such a file, and ours against renderings in such a file."""
    check_pixels("Our picture", ours)
    trainer = read_picture(file)
    stored = as_stored(ours, trainer.format)
    return trainer, stored, (floor_of(stored.pixels, one, trainer.format) for one in others)


def _near(found: Difference) -> bool:
    """Whether two pictures are nearly the same, and not the same."""
    return found.differing > 0 and found.agreement >= SAME


def _compared(
    ours: Pixels, trainer: Pixels, floors: Iterable[Floor], identical_bytes: bool | None, notes: tuple[str, ...]
) -> Comparison:
    if ours.shape != trainer.shape:
        words = f"Different sizes: ours is {size_of(ours)} pixels, the trainer's {size_of(trainer)}."
        unlike = Score(None, "the sizes differ")
        return Comparison(Verdict.DIFFERENT, identical_bytes, None, (), unlike, unlike, None, notes, words)
    found = difference(ours, trainer)
    tried = tuple(until_covered(floors, found)) if _near(found) else ()
    verdict = _verdict(found, tried)
    return Comparison(
        verdict,
        identical_bytes,
        found,
        tried,
        ssim(ours, trainer),
        lpips(ours, trainer),
        heat_map(ours, trainer),
        notes,
        _words(verdict, found, tried, identical_bytes),
    )


def _verdict(found: Difference, floors: Sequence[Floor]) -> Verdict:
    if not found.differing:
        return Verdict.IDENTICAL
    if found.agreement < SAME:
        return Verdict.DIFFERENT
    return Verdict.KERNEL_NOISE if any(covers(one, found) for one in floors) else Verdict.SAME_PICTURE


def _words(verdict: Verdict, found: Difference, floors: Sequence[Floor], identical_bytes: bool | None) -> str:
    if verdict is Verdict.IDENTICAL:
        if identical_bytes is None:
            return "Identical pixels."
        if identical_bytes:
            return "Identical, byte for byte."
        return "Identical pixels. The files' bytes are not the same: another version of the encoder, or metadata."
    amount = f"different by {_amount(found)}"
    floor = deciding(floors, found)
    if verdict is Verdict.KERNEL_NOISE and floor is not None and floor.difference is not None:
        return (
            f"Equal up to kernel noise: {amount}; with other kernels ({floor.kernels}) ours differs from itself by "
            f"{_amount(floor.difference)}. A cause that changes no more than that cannot be told from kernels."
        )
    if verdict is Verdict.DIFFERENT:
        return f"Different: {_amount(found)}; the large shapes and colours do not agree ({found.agreement:.2f} of 1)."
    return f"Same picture, {amount}. {_beyond(floors, floor)}"


def _beyond(floors: Sequence[Floor], farthest: Floor | None) -> str:
    """What the floors say of a difference that none of them covers; no more than of the kernels that were tried."""
    missing = "".join(f" Not tried: {one.kernels}; {one.problem}" for one in floors if one.difference is None)
    if farthest is None or farthest.difference is None:
        return f"Whether kernels alone explain it was not measured.{missing}"
    names = [one.kernels for one in floors if one.difference is not None]
    tried = f"The other kernels that were tried ({'; '.join(names)})"
    if not farthest.difference.differing:
        return f"{tried} change nothing.{missing}"
    which = f", {farthest.kernels}" if len(names) > 1 else ""
    return f"{tried} change less: with them ours differs from itself by {_amount(farthest.difference)}{which}.{missing}"


def _amount(found: Difference) -> str:
    levels = "1 level" if found.maximum == 1 else f"{found.maximum} levels"
    count = f"{found.share:.1%}" if found.share >= 0.001 else f"{found.differing:,} of {found.values:,}"
    return f"at most {levels}, {found.mean:.3g} on average, on {count} of the values"


def _floor_numbers(floor: Floor) -> dict[str, object]:
    """With the numbers on its own level, as they were before there were several."""
    numbers = {} if floor.difference is None else _numbers(floor.difference)
    return {"kernels": floor.kernels, "problem": floor.problem, **numbers}


def _numbers(found: Difference) -> dict[str, object]:
    return {
        "values": found.values,
        "differing": found.differing,
        "share": found.share,
        "maximum": found.maximum,
        "mean": found.mean,
        "psnr": found.psnr if math.isfinite(found.psnr) else None,
        "agreement": found.agreement,
    }
