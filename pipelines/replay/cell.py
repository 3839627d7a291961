"""One picture of a replay: where it stands in the grid, what it is rendered from, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ..handle import PipelineHandle
    from ..run.request import SampleRequest


@dataclass(frozen=True, order=True)
class Place:
    """Which picture of the grid: the checkpoint's step, the sample's index, and times the sample's own multiplier."""

    step: int
    index: int
    strength: float = 1.0

    def __str__(self) -> str:
        times = "" if self.strength == 1 else f" at {self.strength:g} times its multiplier"
        return f"step {self.step}, sample {self.index}{times}"


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture that can be tried.

    Attributes:
        place: in the grid.
        handle: the base with the checkpoint's LoRA at the cell's strength; without one where nothing was trained yet.
        request: for the run.
    """

    place: Place
    handle: PipelineHandle
    request: SampleRequest


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a place: a picture with its report, or an error.

    Attributes:
        place: in the grid.
        picture: a PNG file; None where there is an error.
        report: the run's, JSON-able, with ``replay``: the place and the cell's key.
        error: why there is no picture; empty where there is one.
        found: whether the picture was on the disk already.
    """

    place: Place
    picture: Path | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    found: bool = False
