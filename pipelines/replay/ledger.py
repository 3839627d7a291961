"""What a replay comes to, place by place: found on the disk, rendered, failed, or still waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cell import Outcome

if TYPE_CHECKING:
    from .cell import Place
    from .store import CellStore


@dataclass(frozen=True)
class Waiting:
    """A picture that is still to be rendered.

    Attributes:
        place: the first that needs it.
        steps: of its run.
    """

    place: Place
    steps: int


class Ledger:
    """By key, for two places may be one picture, as the base at two strengths is.

    Args:
        store: of finished cells.
    """

    def __init__(self, store: CellStore) -> None:
        self._store = store
        self._refused: list[Outcome] = []
        self._places: list[tuple[Place, str]] = []
        self._waiting: dict[str, Waiting] = {}
        self._found: dict[str, Mapping[str, Any]] = {}
        self._rendered: dict[str, Mapping[str, Any]] = {}
        self._failed: dict[str, str] = {}

    def refuse(self, place: Place, error: str) -> None:
        """Notes a place that cannot be tried."""
        self._refused.append(Outcome(place, error=error))

    def add(self, place: Place, key: str, steps: int) -> bool:
        """Notes a place that can be; returns whether its picture is to be rendered, and was not added before."""
        self._places.append((place, key))
        if key in self._found or key in self._waiting:
            return False
        report = self._store.find(key)
        if report is None:
            self._waiting[key] = Waiting(place, steps)
        else:
            self._found[key] = report
        return report is None

    @property
    def waiting(self) -> dict[str, Waiting]:
        """What is still to be rendered, by key, in the order in which it was added."""
        return {key: one for key, one in self._waiting.items() if not self.is_settled(key)}

    def is_settled(self, key: str) -> bool:
        """Whether a picture that waited is rendered or failed."""
        return key in self._rendered or key in self._failed

    def keep(self, key: str, picture: bytes, report: Mapping[str, Any]) -> None:
        """Keeps a rendered picture.

        Raises:
            FileError: it cannot be written.
        """
        self._rendered[key] = self._store.keep(key, picture, report)

    def fail(self, key: str, error: str) -> None:
        """Notes why a picture could not be rendered."""
        self._failed[key] = error

    def outcomes(self) -> list[Outcome]:
        """An outcome for each place, in the order of their checkpoints, samples and strengths."""
        found = [*self._refused, *(self._outcome(place, key) for place, key in self._places)]
        return sorted(found, key=lambda outcome: outcome.place)

    def _outcome(self, place: Place, key: str) -> Outcome:
        if key in self._failed:
            return Outcome(place, error=self._failed[key])
        found = key in self._found
        report = self._found[key] if found else self._rendered[key]
        where = {"step": place.step, "index": place.index, "strength": place.strength, "key": key}
        return Outcome(place, self._store.picture(key), {**report, "replay": where}, found=found)
