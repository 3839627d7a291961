"""From what was measured to the table's rows: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Kind = Literal["time", "memory", "count"]
NOISE = 0.02  # of two equal times, measured in pairs: within it neither is slower


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        ours: how it is shown.
        peer: the same of the peer; empty where there is none.
        ratio: the number that is judged, or that tells most.
        ratio_of: what the ratio is of.
        limit: the ratio is to be below it, or equal to it where it is 0; None has no target.
        kind: of the target: a small model says nothing of times and memory.
        note: the engine's counters, and what else is to be known.
    """

    name: str
    ours: str
    peer: str
    ratio: float
    ratio_of: str
    limit: float | None = None
    kind: Kind = "time"
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether its target does; None without one."""
        return None if self.limit is None else self.ratio <= self.limit


def rows_of(found: Mapping[str, Any], weights: int, on_cpu: bool) -> list[Row]:
    """All rows.

    Args:
        found: what the children measured, see ``command.py``.
        weights: bytes of the model's weights as they run.
        on_cpu: whether that is where they run.
    """
    return [
        _import(found["import"]),
        *_loading(found["load"], weights),
        *_pictures(found["life"]),
        *_changes(found["life"], weights, on_cpu),
        *_steps(found["steps"]),
        _released(found["life"], weights),
    ]


def verdict(rows: Sequence[Row], realistic: bool) -> tuple[str, int]:
    """The last line and the exit status: 0 only where every target that is judged holds."""
    judged = [row for row in rows if row.holds is not None and (realistic or row.kind == "count")]
    missed = [row.name for row in judged if not row.holds]
    line = f"Targets: {len(judged) - len(missed)} of {len(judged)} hold"
    line += f"; missed: {'; '.join(missed)}." if missed else "."
    rest = sum(row.holds is not None for row in rows) - len(judged)
    return line + (f" Not judged on a tiny model: {rest}." if rest else ""), 1 if missed else 0


def _import(found: Mapping[str, Sequence[float]]) -> Row:
    ours = median(found["ours"])
    return Row(
        "import beyond torch", _ms(ours), _ms(median(found["diffusers"])), ours / 0.05, "50 ms", 1.0,
        note="the pack's nodes; diffusers' pipeline class",
    )  # fmt: skip


def _loading(found: Mapping[str, Sequence[Mapping[str, float]]], weights: int) -> list[Row]:
    ours, peer = ([one["seconds"] for one in found[side]] for side in ("ours", "diffusers"))
    peaks = {side: max(one["peak"] for one in found[side]) / weights for side in found}
    return [
        Row(
            "cold load", duration(median(ours)), duration(median(peer)), paired(ours, peer), "diffusers'", 1 + NOISE,
            note="until a byte of every page was read: diffusers maps its files",
        ),
        Row(
            "peak while loading", times(peaks["ours"]), times(peaks["diffusers"]), peaks["ours"], "the weights", 1.1,
            "memory",
        ),
    ]  # fmt: skip


def _pictures(life: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name in ("first picture", "another seed", "another prompt"):
        ours, peer = (_event(life[side], name) for side in ("ours", "diffusers"))
        rows.append(
            Row(name, duration(ours), duration(peer), ours / peer, "diffusers'", note=counted(life["ours"], name))
        )
    again = life["ours"]["events"]["another seed"]
    work = ("parts_loaded", "bytes_moved", "bytes_read", "texts_encoded")
    done = sum(one["counters"][name] for one in again for name in work)
    return [
        *rows,
        Row(
            "second picture's work", f"{done}", "", done, "texts, bytes and parts", 0, "count",
            counted(life["ours"], "another seed"),
        ),
    ]  # fmt: skip


def _changes(life: Mapping[str, Any], weights: int, on_cpu: bool) -> list[Row]:
    rows = []
    for how, limit in (("live", 1 / 50), ("merged", 1 / 3 if on_cpu else 1 / 20)):
        again = _event(life["ours"], f"reload {how}")
        peers_again = _event(life["diffusers"], f"reload {how}")
        of = "a reload" if how == "live" else "a reload and merge"
        rows.append(Row(f"reload {how}", duration(again), duration(peers_again), again / peers_again, "diffusers'"))
        for change, name in (("strength", f"another strength, {how}"), ("swap", f"another LoRA, {how}")):
            ours, peer = (_event(life[side], f"{change} {how}") for side in ("ours", "diffusers"))
            note = counted(life["ours"], f"{change} {how}")
            rows.append(Row(name, _ms(ours), _ms(peer), ours / again, of, limit, note=note))
            if how == "merged":
                peaks = [_peak(life[side], f"{change} {how}") / weights for side in ("ours", "diffusers")]
                rows.append(
                    Row(f"{name}: memory", times(peaks[0]), times(peaks[1]), peaks[0], "the weights", 0.2, "memory")
                )  # fmt: skip
    levels = [life[side]["levels"] for side in ("ours", "diffusers")]
    return [
        *rows,
        Row("picture, merges taken off", str(levels[0]), str(levels[1]), levels[0], "levels off the first", 0, "count"),
    ]


def _steps(found: Mapping[str, Any]) -> list[Row]:
    rows = []
    names = {"none": "step", "one": "step, a live LoRA", "stack": "step, eight live LoRAs"}
    for key, name in names.items():
        timed = found[key]["rows"]
        ours, peer = ([one[side] for one in timed] for side in ("ours", "diffusers"))
        pictures = "the same pixels" if found[key]["same"] else "other pixels"
        rows.append(
            Row(
                name, duration(median(ours)), duration(median(peer)), paired(ours, peer),
                "diffusers'" if key == "none" else "PEFT's", 1 + NOISE, note=pictures,
            )
        )  # fmt: skip
    timed = found["none"]["rows"]
    # in the same run: between two runs the calls themselves differ by more than this
    own, peers = (median(one[side] / one[f"{side} inside"] - 1 for one in timed) for side in ("ours", "diffusers"))
    replays = paired([one["ours"] for one in timed], [one["replayed"] for one in timed])
    return [
        *rows,
        Row(
            "sampler beside its calls", f"{own:.2%}", f"{peers:.2%}", own, "the calls", 0.01,
            note=f"whole loop over the same calls made directly, in pairs: {replays:.3f}",
        ),
    ]  # fmt: skip


def _released(life: Mapping[str, Any], weights: int) -> Row:
    ours, peer = (life[side]["left"] / weights for side in ("ours", "diffusers"))
    return Row("left after release", f"{ours:.2%}", f"{peer:.2%}", max(ours, 0), "the weights", 0.01, "memory")


def paired(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The ratio of two sides' runs, whose numbers are pairs."""
    return median(one / other for one, other in zip(ours, peer, strict=True))


def _event(life: Mapping[str, Any], name: str) -> float:
    return median(one["seconds"] for one in life["events"][name])


def _peak(life: Mapping[str, Any], name: str) -> int:
    """Bytes, of the computer's memory and the device's together."""
    return max(one["peak"] + one["peak_on_device"] for one in life["events"][name])


def counted(life: Mapping[str, Any], name: str) -> str:
    """What the engine did in the first of the runs, without zeros."""
    done = {key: value for key, value in life["events"][name][0]["counters"].items() if value}
    return ", ".join(f"{key} {value}" for key, value in done.items()) or "nothing loaded, moved or encoded"


def duration(value: float) -> str:
    """Seconds as they are shown."""
    return f"{value:.2f} s" if value >= 1 else _ms(value)


def _ms(value: float) -> str:
    return f"{value * 1000:.1f} ms"


def times(value: float) -> str:
    """A multiple of the weights as it is shown."""
    return f"{value:.2f} x"
