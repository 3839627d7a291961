"""The preview rounds of a training in the order of time, by the pictures that they left, and whose process each was.

A process of AI Toolkit begins with the base's own weights. What its rounds leave in them is there for its later rounds,
and gone where the training is taken up again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .job import Round

if TYPE_CHECKING:
    from .beginning import Section
    from .previews import Picture


def find_rounds(
    pictures: Iterable[Picture],
    merged_at: Mapping[Section, float | None],
    at_step_0: Sequence[Section],
    restarts: Sequence[int],
    *,
    samples_on_resume: bool,
) -> tuple[Round, ...]:
    """The rounds of a job.

    Args:
        pictures: all of them, in the order of time.
        merged_at: the multiplier at which a section's rounds merge the LoRA; None where they apply it live.
        at_step_0: sections of the rounds that one process renders with the name of step 0, in order.
        restarts: steps at which it was taken up again, in order, as far as logs tell. A step that is rendered again
            tells of one by itself.
        samples_on_resume: whether a process that takes the training up first renders the step at which it does.
    """
    waiting = deque(restarts)
    found: list[Round] = []
    process, reached, of_step_0 = 0, -1, 0
    for step, indices in _groups(pictures):
        restarted = step <= reached and not (step == reached == 0 and of_step_0 < len(at_step_0))
        while waiting and (waiting[0] < step or (waiting[0] == step and samples_on_resume)):
            waiting.popleft()
            restarted = True
        if restarted:
            process, of_step_0 = process + 1, 0
        section: Section = "sample"
        if step == 0 and at_step_0:
            section = at_step_0[min(of_step_0, len(at_step_0) - 1)]
            of_step_0 += 1
        found.append(Round(step, indices, process, merged_at[section]))
        reached = step
    return tuple(found)


def _groups(pictures: Iterable[Picture]) -> list[tuple[int, tuple[int, ...]]]:
    """Steps and indices of the pictures that were rendered one after the other."""
    found: list[tuple[int, list[int]]] = []
    for one in pictures:
        if found and found[-1][0] == one.step and found[-1][1][-1] < one.index:
            found[-1][1].append(one.index)
        else:
            found.append((one.step, [one.index]))
    return [(step, tuple(indices)) for step, indices in found]
