"""The report that a page is made of: a tree of plain values, as JSON holds it.

The types below are the schema: every key must be there, and ``checked`` refuses a value of another type. Keys that are
not named here may stand in the report too; the page does not take them.
"""

from __future__ import annotations

import math
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

from ...pipelines.errors import InputError
from ...pipelines.words import shown

Verdict = Literal["identical", "kernel noise", "same picture", "different", "not rendered", "no preview"]


class Files(TypedDict):
    """A cell's pictures: paths relative to the report's folder, with ``/``; null where there is none.

    Each ends in ``.png``, ``.jpg``, ``.jpeg`` or ``.webp`` and lies in the folder, so that it can be moved as a whole.
    """

    trainer: str | None
    ours: str | None
    engine: str | None
    heat_map: str | None


class Metrics(TypedDict):
    """How far ours is from the trainer's; null where it was not measured.

    ``max`` and ``mean`` are differences in levels of 0 to 255, ``share`` the part of the values that differ, 0 to 1.
    ``psnr`` is in dB, and null for equal pictures, whose PSNR no JSON number tells. ``ssim`` is 1 for equal pictures,
    ``lpips`` is 0.
    """

    max: float | None
    mean: float | None
    share: float | None
    psnr: float | None
    ssim: float | None
    lpips: float | None


class Pair(TypedDict):
    """Two of the three pictures: ``pair`` names them, e.g. ``ours and the engine``."""

    pair: str
    verdict: Verdict
    metrics: Metrics


class Oracle(TypedDict):
    """What AI Toolkit's own engine said of a cell: ``finding`` in a few words, ``words`` in sentences.

    ``pairs`` are those of the three pictures that could be compared; without a picture of the engine's there is none,
    and ``words`` say why.
    """

    finding: str
    words: str
    pairs: list[Pair]


class Cell(TypedDict):
    """One picture of the grid: a checkpoint, a sample, a strength.

    ``index`` is the sample's place in its round, ``strength`` the LoRA's, null where the picture has none. ``seed`` is
    null where the trainer drew one, ``size`` is width and height in pixels. ``verdict_words`` is a sentence, ``causes``
    are the likely ones, likeliest first. ``error`` says why there is no picture of ours; null where there is one.
    ``oracle`` is null where no engine was asked.
    """

    step: int
    final: bool
    index: int
    strength: float | None
    prompt: str
    negative: str | None
    seed: int | None
    size: tuple[int, int]
    files: Files
    metrics: Metrics
    verdict: Verdict
    verdict_words: str
    causes: list[str]
    error: str | None
    oracle: Oracle | None


class Report(TypedDict):
    """A replay: ``{"job": "my_job", "model": "lumina2", ..., "cells": [...]}``.

    ``model`` is a title for people, ``trained_with`` AI Toolkit's version or an empty text, ``date`` the replay's, as a
    person reads it. ``environment`` names what ours ran with: ``{"torch": "2.13.0", "device": "cuda:0"}``. ``notes``
    are sentences on what was skipped.
    """

    job: str
    model: str
    trained_with: str
    date: str
    environment: dict[str, str]
    notes: list[str]
    cells: list[Cell]


def checked(report: object) -> Report:
    """The report's part that the schema names.

    Raises:
        InputError: a key is missing, a value is of another type, or two cells are of one place in the grid; names the
            place, e.g. ``cells[3].metrics.max``.
    """
    taken = cast("Report", _taken(report, Report, ""))
    places: dict[tuple[int, bool, int, float | None], int] = {}
    for number, cell in enumerate(taken["cells"]):
        first = places.setdefault((cell["step"], cell["final"], cell["index"], cell["strength"]), number)
        if first != number:
            raise InputError(
                f"The report for the page has cells[{first}] and cells[{number}] both for step {cell['step']}, sample "
                f"{cell['index']}, strength {cell['strength']}. Leave one of them out."
            )
    return taken


def _taken(value: Any, hint: Any, where: str) -> Any:
    """A copy of ``value``, which must be of the type ``hint``."""
    kind, kinds = get_origin(hint), get_args(hint)
    if is_typeddict(hint) and isinstance(value, dict):
        return _object(value, hint, where)
    if kind is UnionType:
        return None if value is None else _taken(value, kinds[0], where)
    if kind is list and isinstance(value, list):
        return [_taken(item, kinds[0], f"{where}[{place}]") for place, item in enumerate(value)]
    if kind is dict and isinstance(value, dict):
        return {_taken(key, kinds[0], where): _taken(item, kinds[1], f"{where}.{key}") for key, item in value.items()}
    if kind is tuple and isinstance(value, list | tuple) and len(value) == len(kinds):
        return [_taken(value[place], kinds[place], f"{where}[{place}]") for place in range(len(kinds))]
    if kind is Literal:
        fits = isinstance(value, str) and value in kinds
    else:
        # True is an int to Python, and 1 is no float; JSON has neither NaN nor infinity
        fits = type(value) is hint or (hint is float and type(value) is int)
        fits = fits and not (isinstance(value, float) and not math.isfinite(value))
    if not fits:
        found = shown(value)
        raise InputError(f"The report for the page has {found} at {where or 'its top'}, where {_words(hint)} belongs.")
    return value


def _object(value: dict[str, Any], hint: Any, where: str) -> dict[str, Any]:
    hints = get_type_hints(hint)
    for key, kind in hints.items():
        if key not in value:
            place = where or "its top"
            raise InputError(f"The report for the page has no {key!r} in {place}, where {_words(kind)} belongs.")
    return {key: _taken(value[key], kind, f"{where}.{key}".lstrip(".")) for key, kind in hints.items()}


def _words(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(_words(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of " + " and ".join(_words(kind) for kind in get_args(hint))
    names = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "null"}
    return names.get(hint, "a list" if get_origin(hint) is list else "an object")
