"""A replay as one report: plain values, as JSON holds them and as the page of a replay reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..compare.comparison import Verdict
from ..models import find_model
from ..run.report import pack_version

if TYPE_CHECKING:
    from ..compare.comparison import Comparison
    from ..handle import PipelineHandle
    from ..jobs.job import TrainingJob
    from .judge import Judged

VERDICTS = {
    Verdict.IDENTICAL: "identical",
    Verdict.KERNEL_NOISE: "kernel noise",
    Verdict.SAME_PICTURE: "same picture",
    Verdict.DIFFERENT: "different",
}
NO_FILES: Mapping[str, str | None] = {"trainer": None, "ours": None, "engine": None, "heat_map": None}


def cell_report(judged: Judged, files: Mapping[str, str | None] = NO_FILES) -> dict[str, Any]:
    """One cell of the report.

    Args:
        judged: the cell.
        files: ``trainer``, ``ours``, ``engine`` and ``heat_map``: paths below the report's folder, or None.
    """
    outcome, sample, comparison = judged.outcome, judged.sample, judged.comparison
    place = outcome.place
    size = outcome.report["size"]["rendered"] if outcome.report else [sample.width, sample.height]
    return {
        "step": place.step,
        "final": judged.checkpoint.final,
        "index": place.index,
        "strength": sample.multiplier * place.strength if not judged.checkpoint.base else None,
        "prompt": sample.prompt,
        "negative": sample.negative_prompt,
        "seed": sample.seed,
        "size": list(size),
        "recipes": list(judged.recipes),
        "files": dict(files),
        "metrics": metrics(comparison),
        "verdict": _verdict(judged),
        "verdict_words": _words(judged),
        "causes": [cause.words for cause in judged.causes],
        "error": outcome.error or None,
        "comparison": comparison and comparison.as_json(),
        "checks": [cause.as_json() for cause in judged.causes],
        "run": dict(outcome.report),
        "found": outcome.found,
        # where AI Toolkit's engine was asked too, see pipelines/oracle/beside.py
        "oracle": None,
    }


def metrics(comparison: Comparison | None) -> dict[str, float | None]:
    """The numbers of a comparison; each None where it was not measured."""
    difference = comparison and comparison.difference
    return {
        "max": difference and difference.maximum,
        "mean": difference and difference.mean,
        "share": difference and difference.share,
        "psnr": difference and (difference.psnr if difference.differing else None),
        "ssim": comparison and comparison.ssim.value,
        "lpips": comparison and comparison.lpips.value,
    }


def replay_report(job: TrainingJob, base: PipelineHandle, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole report.

    Args:
        job: that was replayed.
        base: what it was replayed on.
        cells: each of :func:`cell_report`.
    """
    rendered = next((cell["run"] for cell in cells if cell["run"]), {})
    return {
        "schema": 1,
        "pack": {"name": "comfyui-aitk", "version": pack_version()},
        "job": job.name,
        "model": find_model(base.model).title,
        "trained_with": job.trained_with,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": {**rendered.get("versions", {}), "device": str(rendered.get("device", "none"))},
        "notes": list(job.notes),
        "cells": list(cells),
    }


def _verdict(judged: Judged) -> str:
    if judged.comparison is not None:
        return VERDICTS[judged.comparison.verdict]
    return "not rendered" if judged.outcome.picture is None else "no preview"


def _words(judged: Judged) -> str:
    if judged.comparison is not None:
        return judged.comparison.words
    if judged.outcome.picture is None:
        return f"Not rendered: {judged.outcome.error}"
    if judged.problem:
        return f"Rendered, and the trainer's picture cannot be compared: {judged.problem}"
    return "Rendered; the job has no picture of this cell to compare it with."
