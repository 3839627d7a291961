"""A judged cell with the engine's picture of it: three pictures, the pairs of them, and what they say together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compare.comparison import compare, compare_with_file
from ..compare.pixels import read_picture
from ..compare.three_ways import Pair, finding_of
from ..errors import AITKError
from ..replay.report import VERDICTS
from .limits import claim, words_of

if TYPE_CHECKING:
    from ..compare.comparison import Comparison
    from ..compare.pixels import Pixels
    from ..compare.sheet import Cell as SheetCell
    from ..replay.cell import Place
    from ..replay.judge import Judged
    from ..replay.views import SheetTable
    from .consult import Witness


@dataclass(frozen=True, eq=False)
class Beside:
    """A cell three ways.

    Attributes:
        judged: ours and the trainer's file.
        witness: the engine's.
        comparisons: of the pairs of which both are there.
        finding: its name, e.g. ``ours at fault``.
        words: what it means, and what may be expected of the engine here.
    """

    judged: Judged
    witness: Witness
    comparisons: Mapping[Pair, Comparison] = field(default_factory=dict)
    finding: str = ""
    words: str = ""

    def engines(self) -> Pixels | None:
        """The engine's picture, uint8 [H, W, 3]."""
        return None if self.witness.picture is None else read_picture(self.witness.picture).pixels


def three_ways(judged: Iterable[Judged], witnesses: Mapping[Place, Witness]) -> Iterator[Beside]:
    """Sets each cell beside what the engine drew of it, one at a time.

    Args:
        judged: cells.
        witnesses: of all of their places.
    """
    for one in judged:
        witness = witnesses[one.outcome.place]
        if witness.picture is None:
            yield Beside(one, witness, {}, "no engine", f"The engine gave no picture of this cell. {witness.error}")
            continue
        comparisons, problem = _compared(one, witness.picture)
        verdicts = {pair: comparison.verdict for pair, comparison in comparisons.items()}
        limits = words_of(witness.limits)
        finding, words = finding_of(verdicts, limits=limits)
        # what may be expected of the engine is said once
        expected = "" if limits and limits in words else claim(witness.limits)
        yield Beside(one, witness, comparisons, finding, " ".join(filter(None, (words, expected, problem))))


def _compared(judged: Judged, picture: Path) -> tuple[dict[Pair, Comparison], str]:
    """The pairs that can be compared, and why one cannot though both pictures are there."""
    engines = read_picture(picture).pixels
    found = {} if judged.comparison is None else {Pair.TRAINER_OURS: judged.comparison}
    problem = judged.problem
    if judged.preview is not None and not problem:
        try:
            found[Pair.TRAINER_ENGINE] = compare_with_file(engines, judged.preview.file.path)
        except AITKError as error:
            problem = str(error)
    ours = judged.ours()
    if ours is not None:
        found[Pair.OURS_ENGINE] = compare(ours, engines, judged.renderings)
    return found, f"The trainer's file cannot be compared: {problem}" if problem else ""


def oracle_report(beside: Beside) -> dict[str, Any]:
    """A cell's section ``oracle`` of the report."""
    witness = beside.witness
    return {
        "finding": beside.finding,
        "words": beside.words,
        "error": witness.error or None,
        "limits": [{"name": limit.name, "words": limit.words} for limit in witness.limits],
        "pairs": [
            {
                "pair": list(pair.value),
                "verdict": VERDICTS[comparison.verdict],
                "metrics": comparison.metrics,
                "caption": comparison.caption,
            }
            for pair, comparison in beside.comparisons.items()
        ],
        "not_understood": list(witness.record.get("not_understood", ())),
        "record": dict(witness.record),
        "found": witness.found,
    }


def sheet_cells(table: SheetTable, cells: Iterable[Beside]) -> Iterator[SheetCell]:
    """What is drawn on a contact sheet, one at a time."""
    for one in cells:
        for cell in table.cells([one.judged]):
            yield replace(cell, engine=one.engines(), caption=f"{cell.caption}; {one.finding}")
