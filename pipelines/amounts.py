"""Bytes and seconds in words that people read."""

from __future__ import annotations

_UNITS = ("bytes", "KB", "MB", "GB", "TB")
_STEP = 1000  # as disks and the hub's pages count


def size(count: float) -> str:
    """``12.4 GB``: three digits are enough."""
    unit = _unit(count)
    return f"{_digits(count, unit)} {_UNITS[unit]}"


def share(done: float, total: float) -> str:
    """``3.2 of 12.4 GB``: both in the unit of the total."""
    unit = _unit(total)
    return f"{_digits(min(done, total), unit)} of {size(total)}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _unit(count: float) -> int:
    unit = 0
    while round(count / _STEP**unit) >= _STEP and unit < len(_UNITS) - 1:
        unit += 1
    return unit


def _digits(count: float, unit: int) -> str:
    value = count / _STEP**unit
    return f"{value:.0f}" if unit == 0 or value >= 99.95 else f"{value:.1f}"
