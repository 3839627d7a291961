"""What three pictures that should be one say together: the trainer's file, that of its own engine, and ours.

Each pair of them has a verdict of its own, see :mod:`.comparison`. Two that agree leave the third alone, and that one
has something to explain. Who agrees is looked for among equal pictures first, and among near ones only where no two are
equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .comparison import Verdict


class Pair(StrEnum):
    """Two of the three pictures."""

    TRAINER_OURS = "trainer's file and ours"
    TRAINER_ENGINE = "trainer's file and its engine"
    OURS_ENGINE = "ours and the engine"


class Level(StrEnum):
    """How near two pictures that agree are."""

    EQUAL = "equal"
    NEAR = "near"


@dataclass(frozen=True)
class Finding:
    """What a constellation means.

    Attributes:
        name: e.g. ``ours at fault``.
        words: for a user.
        with_limits: the same where the engine is known not to draw as the trainer did; ``{limits}`` says why. Empty
            where that changes nothing.
    """

    name: str
    words: str
    with_limits: str = ""

    def said(self, limits: str) -> str:
        """The words for a cell; ``limits`` is empty where none is known."""
        return self.with_limits.format(limits=limits) if limits and self.with_limits else self.words


_ALL, _NONE = frozenset(Pair), frozenset[Pair]()
_UNEXPLAINED = (
    "No known limit of the engine explains it. What is left is its version of AI Toolkit, its device and kernels, and "
    "its base: one of ComfyUI's files in its models folder may stand in for the job's repository"
)

# who agrees, and how nearly -> what it means
FINDINGS: dict[tuple[Level, frozenset[Pair]], Finding] = {
    (Level.EQUAL, _ALL): Finding("all equal", "The trainer's file, its engine's picture and ours are one picture."),
    (Level.EQUAL, frozenset({Pair.TRAINER_OURS})): Finding(
        "engine differs",
        f"Ours is the trainer's file, and the engine's picture is not. {_UNEXPLAINED}.",
        "Ours is the trainer's file, and the engine's picture is not, as is known of it: {limits}.",
    ),
    (Level.EQUAL, frozenset({Pair.TRAINER_ENGINE})): Finding(
        "ours at fault",
        "The engine draws the trainer's file, and ours is not it: ours is at fault. Please report it with report.json.",
    ),
    (Level.EQUAL, frozenset({Pair.OURS_ENGINE})): Finding(
        "recorded run differed",
        "Ours is the engine's picture, and the trainer's file is not it: the recorded run differed, by its time, its "
        "kernels, its base, or a LoRA that was rounded when it was saved. The causes say which of these are likely.",
    ),
    (Level.NEAR, _ALL): Finding(
        "all near",
        f"The same picture three times, and no two are equal. {_UNEXPLAINED}; a job's own causes are listed.",
        "The same picture three times, and no two are equal. The engine cannot be equal here, so that it only says "
        "that ours is no other picture: {limits}.",
    ),
    (Level.NEAR, frozenset({Pair.TRAINER_OURS})): Finding(
        "engine far off",
        f"Ours is near the trainer's file, and the engine draws another picture. {_UNEXPLAINED}.",
        "Ours is near the trainer's file, and the engine draws another picture, which is more than its known limits "
        "are likely to do: {limits}.",
    ),
    (Level.NEAR, frozenset({Pair.TRAINER_ENGINE})): Finding(
        "ours far off",
        "The engine is near the trainer's file, and ours is another picture: ours is at fault. Please report it with "
        "report.json.",
    ),
    (Level.NEAR, frozenset({Pair.OURS_ENGINE})): Finding(
        "recorded run far off",
        "Ours is near the engine's picture, and the trainer's file is another one: the recorded run differed, by its "
        "time, its base, its LoRA or its settings. The causes say which of these are likely.",
    ),
    (Level.NEAR, _NONE): Finding(
        "all differ",
        "Three different pictures: nothing can be concluded from them. Check base, LoRA and control images of all "
        "three.",
        "Three different pictures: nothing can be concluded from them. Check base, LoRA and control images of all "
        "three; of the engine is known: {limits}.",
    ),
}

# where one of the three is missing: the pair that is left -> what is said of it; ``{verdict}`` is the pair's
_TWO = {
    Pair.TRAINER_OURS: Finding("no engine", "The engine gave no picture of this cell."),
    Pair.TRAINER_ENGINE: Finding(
        "no picture of ours",
        "There is none of ours. The engine's picture and the trainer's file: {verdict}.",
    ),
    Pair.OURS_ENGINE: Finding("no preview", "The job has no picture of this cell. Ours and the engine's: {verdict}."),
}
_ALONE = Finding("engine alone", "Only the engine has a picture of this cell.")

_OF_LEVEL: dict[Level, frozenset[Verdict]] = {
    Level.EQUAL: frozenset({Verdict.IDENTICAL, Verdict.KERNEL_NOISE}),
    Level.NEAR: frozenset({Verdict.IDENTICAL, Verdict.KERNEL_NOISE, Verdict.SAME_PICTURE}),
}


def finding_of(verdicts: dict[Pair, Verdict], *, limits: str = "") -> tuple[str, str]:
    """What three pictures, or two of them, come to: the finding's name, and its words.

    Args:
        verdicts: of the pairs that could be compared.
        limits: why the engine is known not to draw as the trainer did; empty where nothing is known.
    """
    if len(verdicts) < len(Pair):
        return _of_two(verdicts, limits)
    level, agreeing = _agreement(verdicts)
    finding = FINDINGS[level, agreeing]
    return finding.name, finding.said(limits)


def _agreement(verdicts: dict[Pair, Verdict]) -> tuple[Level, frozenset[Pair]]:
    for level, near_enough in _OF_LEVEL.items():
        found = frozenset(pair for pair, verdict in verdicts.items() if verdict in near_enough)
        if len(found) > 1:
            # two pairs are all three pictures; the third pair may lie just beyond the line
            return level, _ALL
        if found:
            return level, found
    return Level.NEAR, _NONE


def _of_two(verdicts: dict[Pair, Verdict], limits: str) -> tuple[str, str]:
    if len(verdicts) != 1:
        return _ALONE.name, _ALONE.words
    ((pair, verdict),) = verdicts.items()
    finding = _TWO[pair]
    words = finding.words.format(verdict=verdict.value)
    differing = limits and verdict not in _OF_LEVEL[Level.EQUAL] and pair is not Pair.TRAINER_OURS
    return finding.name, f"{words} Of the engine is known: {limits}." if differing else words
