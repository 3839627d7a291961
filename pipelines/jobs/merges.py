"""What AI Toolkit's rounds left in the weights on which it drew a later picture.

A round whose pictures have one multiplier merges the LoRA, and afterwards takes it off by the multiplier's absolute
value, each with a rounding to the weights' dtype: after a round at -0.5 the weights have lost one whole LoRA, and the
training goes on from there. No file holds such weights; the LoRAs that were saved tell what was merged.

Source: AI Toolkit network_mixins.py merge_in and merge_out, base_model.py generate_images (27a03a91).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import JobCheckpoint, Round, TrainingJob

_EXACT = "float32"  # in which the trainer holds and merges its LoRA
_MOST_NAMED = 8


@dataclass(frozen=True)
class Merge:
    """A LoRA that a round merged and took off.

    Attributes:
        checkpoint: the LoRA; without a file where it is not there any more.
        multiplier: at which it was merged, any number but 0.
    """

    checkpoint: JobCheckpoint
    multiplier: float


def merges_before(job: TrainingJob, step: int, index: int) -> tuple[Merge, ...]:
    """What was merged, one after the other, into the weights on which a picture was drawn, before its own round.

    Args:
        step, index: of the picture. One that the trainer did not draw is taken to come after the rounds of lower steps.
    """
    checkpoints = {one.step: one for one in job.checkpoints}
    # a process that took the training up and came to a step saved its own LoRA there
    saved_by = {one.step: one.process for one in job.rounds}
    found = []
    for one in _earlier_rounds(job, step, index):
        checkpoint = checkpoints[one.step]
        if one.merged_at and not checkpoint.base:
            own = one.process == saved_by[one.step]
            found.append(Merge(checkpoint if own else replace(checkpoint, file=None), one.merged_at))
    return tuple(found)


def restorable(job: TrainingJob, merges: Sequence[Merge]) -> bool:
    """Whether the weights can be made once more: all LoRAs are there, and hold enough to make what stayed of them.

    Of a positive multiplier only the roundings' rest stays, which a LoRA that was rounded itself does not give.
    """
    whole = all(one.checkpoint.file is not None for one in merges)
    exact = all(job.save_dtype == _EXACT or one.checkpoint.initial for one in merges)
    return whole and (exact or spoil(merges))


def spoil(merges: Sequence[Merge]) -> bool:
    """Whether more than roundings is left of them."""
    return any(one.multiplier < 0 for one in merges)


def lost_merges(job: TrainingJob) -> Iterator[str]:
    """A sentence where pictures cannot be drawn again, because what earlier rounds left in the weights is not known."""
    lost: set[int] = set()
    gone: set[int] = set()
    spoils = any(one.merged_at is not None and one.merged_at < 0 for one in job.rounds)
    for preview in job.previews if spoils else ():
        merges = merges_before(job, preview.step, preview.index)
        # the LoRA that training began with may lie among the user's
        missing = {one.checkpoint.step for one in merges if one.checkpoint.file is None and not one.checkpoint.initial}
        if missing and spoil(merges):
            lost.add(preview.step)
            gone |= missing
    if lost:
        yield (
            f"The pictures of {_steps(lost)} cannot be drawn again: before them the job merged its LoRA at a negative "
            "network_multiplier, which AI Toolkit does not take off its weights, and the LoRA of "
            f"{_steps(gone)} is not there. They are rendered without what it left."
        )


def _earlier_rounds(job: TrainingJob, step: int, index: int) -> list[Round]:
    """The rounds of a picture's process that came before its own."""
    rounds = job.rounds
    drawn = [place for place, one in enumerate(rounds) if one.step == step and index in one.indices]
    lower = [place for place, one in enumerate(rounds) if one.step < step]
    if drawn:
        end, process = drawn[-1], rounds[drawn[-1]].process
    elif lower:
        end, process = lower[-1] + 1, rounds[lower[-1]].process
    else:
        return []
    return [one for one in rounds[:end] if one.process == process]


def _steps(steps: set[int]) -> str:
    named = ", ".join(map(str, sorted(steps)[:_MOST_NAMED]))
    more = f" and {len(steps) - _MOST_NAMED} more" if len(steps) > _MOST_NAMED else ""
    return f"step {named}" if len(steps) == 1 else f"steps {named}{more}"
