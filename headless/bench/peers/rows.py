"""From the lives of the pack and of a peer to the rows of that peer's table: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ..rows import Row, counted, duration, paired, times

if TYPE_CHECKING:
    from .kinds import Kind

Life = Mapping[str, Any]
Pair = tuple[Life, Life]  # ours, the peer's
Sides = tuple[list[float], list[float]]

_PICTURES = {
    "first picture": "first picture",
    "another seed": "another seed",
    "another prompt": "another prompt",
    "a LoRA": "first LoRA and its picture",
    "another strength": "another strength and its picture",
    "another LoRA": "another LoRA and its picture",
}
_STEPS = {"another seed": "step", "another strength": "step, a LoRA"}


def rows_beside(kind: Kind, pairs: Sequence[Pair], weights: int) -> list[Row]:
    """The rows; none of them has a target.

    Args:
        kind: of the peer.
        pairs: what :func:`.life.lived_beside` found of ours and of the peer.
        weights: bytes of the model's weights as they run.
    """
    does = {"another strength": kind.strength, "another LoRA": kind.swap}
    of = f"{kind.title}'s"
    peaks = [max(side) / weights for side in _sides(pairs, lambda life: _load(life)["peak"])]
    left = [median(side) / weights for side in _sides(pairs, lambda life: life["left"])]
    return [
        _timed("load", of, _sides(pairs, lambda life: _load(life)["seconds"])),
        Row("peak while loading", times(peaks[0]), times(peaks[1]), peaks[0], "the weights", kind="memory"),
        *(_picture(name, shown, of, pairs, does.get(name, "")) for name, shown in _PICTURES.items()),
        *(
            _timed(shown, of, _sides(pairs, lambda life, name=name: life["steps"][name]))
            for name, shown in _STEPS.items()
        ),
        Row("left after release", f"{left[0]:.2%}", f"{left[1]:.2%}", left[0], "the weights", kind="memory"),
    ]


def _picture(name: str, shown: str, of: str, pairs: Sequence[Pair], does: str) -> Row:
    same = all(ours["pictures"][name] == peers["pictures"][name] for ours, peers in pairs)
    notes = ("the same pixels" if same else "other pixels", f"ours: {counted(pairs[0][0], name)}", does)
    seconds = _sides(pairs, lambda life: life["events"][name][0]["seconds"])
    return _timed(shown, of, seconds, "; ".join(filter(None, notes)))


def _timed(name: str, of: str, seconds: Sides, note: str = "") -> Row:
    ours, peers = seconds
    return Row(name, duration(median(ours)), duration(median(peers)), paired(ours, peers), of, note=note)


def _load(life: Life) -> Mapping[str, Any]:
    return life["events"]["load"][0]


def _sides(pairs: Sequence[Pair], value: Callable[[Life], float]) -> Sides:
    return [value(ours) for ours, _ in pairs], [value(peers) for _, peers in pairs]
