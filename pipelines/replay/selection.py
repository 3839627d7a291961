"""Which checkpoints, samples and strengths of a job a person means. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..words import shown

if TYPE_CHECKING:
    from ..jobs.job import JobCheckpoint, JobSample, TrainingJob

ALL, LAST = "all", "last"
MOST_STRENGTH = 100.0  # times the job's own multiplier
_SHOWN = 12  # numbers in a message


@dataclass(frozen=True)
class Selection:
    """What of a job is rendered.

    Attributes:
        checkpoints: in the order of their steps.
        samples: of a usual round, in the order of their indices.
        first_samples: of step 0.
        strengths: times each sample's own multiplier, in the order given.
    """

    checkpoints: tuple[JobCheckpoint, ...]
    samples: tuple[JobSample, ...]
    first_samples: tuple[JobSample, ...]
    strengths: tuple[float, ...]

    def at(self, checkpoint: JobCheckpoint) -> tuple[JobSample, ...]:
        """The samples of a checkpoint's round."""
        return self.samples if checkpoint.step else self.first_samples

    @property
    def columns(self) -> dict[int, JobSample]:
        """Index -> sample of all chosen rounds; where step 0 has another one than the rest, that of the rest."""
        found: dict[int, JobSample] = {}
        for checkpoint in sorted(self.checkpoints, key=lambda one: one.step):
            found |= {one.index: one for one in self.at(checkpoint)}
        return dict(sorted(found.items()))


def select(job: TrainingJob, checkpoints: str = ALL, samples: str = ALL, strengths: str = "1.0") -> Selection:
    """Reads the three texts.

    Args:
        job: what is chosen of.
        checkpoints: ``all``, ``last``, or steps, e.g. ``250,500``.
        samples: ``all``, or indices from 0, e.g. ``0,2``.
        strengths: numbers, e.g. ``0.5,1.0``.

    Raises:
        InputError: a text is none of these, or names what the job does not have; says what it has.
    """
    steps = [one.step for one in job.checkpoints]
    rounds = [job.samples_at(step) for step in steps]
    indices = sorted({one.index for samples in rounds for one in samples})
    for what, found in (("checkpoint", steps), ("sample", indices)):
        if not found:
            raise InputError(f"Job {shown(job.name)} has no {what}: there is nothing to replay. Choose another job.")
    words = {ALL: steps, LAST: [max(steps)]}
    chosen_steps = set(_numbers("checkpoints", checkpoints, steps, words))
    chosen_indices = set(_numbers("samples", samples, indices, {ALL: indices}))
    selection = Selection(
        tuple(one for one in job.checkpoints if one.step in chosen_steps),
        tuple(one for one in job.samples if one.index in chosen_indices),
        tuple(one for one in job.first_samples if one.index in chosen_indices),
        _strengths(strengths),
    )
    if not selection.columns:
        raise InputError(
            f"samples names {_listed(list(chosen_indices))}, which no checkpoint of {_listed(list(chosen_steps))} has: "
            "step 0 has samples of its own in this job (first_sample). Choose other ones."
        )
    return selection


def _numbers(name: str, text: str, there: Sequence[int], words: dict[str, list[int]]) -> list[int]:
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    ways = f"{', '.join(words)}, or numbers of these with commas between: {_listed(there)}"
    found = []
    for part in text.split(","):
        digits = part.strip()
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
            raise InputError(f"{name} is {shown(text)}: choose {ways}.")
        if int(digits) not in there:
            raise InputError(f"{name} names {int(digits)}, which the job does not have. Choose {ways}.")
        found.append(int(digits))
    return found


def _strengths(text: str) -> tuple[float, ...]:
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = None
        # the comparison is false for NaN too
        if value is None or not abs(value) <= MOST_STRENGTH:
            raise InputError(
                f"strengths is {shown(text)}: choose numbers from -{MOST_STRENGTH:g} to {MOST_STRENGTH:g} with commas "
                "between, e.g. 0.5,1.0. 1.0 is the job's own multiplier."
            )
        found.append(value)
    return tuple(dict.fromkeys(found))


def _listed(numbers: Sequence[int]) -> str:
    found = sorted(numbers)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(map(str, found[:_SHOWN])) + more
