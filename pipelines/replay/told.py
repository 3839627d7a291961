"""A replay's report as it comes over a wire: what it says of the pictures that came with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..compare.comparison import Verdict
from ..errors import InputError

_CAUSE = ("name", "standing", "recorded", "ours", "words")


@dataclass(frozen=True)
class ToldCell:
    """What a report says of one picture.

    Attributes:
        where: of the grid, for a user.
        has_preview: whether the trainer's picture is there; else black stands in its place.
        causes: as :meth:`..compare.causes.Cause.as_json` gives them, likely ones first.
    """

    where: str
    has_preview: bool
    causes: tuple[Mapping[str, str], ...]


def told_cells(report: str) -> list[ToldCell]:
    """The cells that have a picture, in the order of the pictures.

    Raises:
        InputError: it is no report of a replay.
    """
    try:
        cells = json.loads(report)["cells"]
        return [_told(cell) for cell in cells if cell["error"] is None]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            "replay_report is no report of a replay. Connect the report of AITK Replay Previews."
        ) from error


def in_a_line(cell: ToldCell, verdict: Verdict) -> str:
    """The likely causes of a picture's difference in one line; empty where nothing differs, or nothing is known."""
    if verdict is Verdict.IDENTICAL or not cell.causes:
        return ""
    known = [cause["words"] for cause in cell.causes if cause["standing"] != "unknown"]
    unknown = [cause["name"] for cause in cell.causes if cause["standing"] == "unknown"]
    rest = f"Unknown: {', '.join(unknown)}." if unknown else ""
    return " ".join([f"{cell.where}:", *known, *([rest] if rest else [])])


def _told(cell: Mapping[str, Any]) -> ToldCell:
    causes = tuple({name: _text(cause[name]) for name in _CAUSE} for cause in cell["checks"])
    where = f"step {int(cell['step'])}, sample {int(cell['index'])}"
    return ToldCell(where, cell["verdict"] != "no preview", causes)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
