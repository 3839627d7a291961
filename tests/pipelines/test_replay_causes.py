"""A recorded job rendered with one deliberate difference: that is named first, and nothing else is accused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.compare.causes import Cause, Standing
from comfyui_aitk.pipelines.compare.comparison import Verdict
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.jobs.model_section import wanted_model
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.recipe import TRAINER_PREVIEW
from comfyui_aitk.pipelines.observer import SILENT
from comfyui_aitk.pipelines.replay.grid import make_grid
from comfyui_aitk.pipelines.replay.judge import Judged, judge
from comfyui_aitk.pipelines.replay.render import render_grid
from comfyui_aitk.pipelines.replay.selection import select
from comfyui_aitk.pipelines.replay.store import CellStore
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from recorded_jobs import GOLDEN, recorded_base
from safetensors.torch import load_file, save_file

LUMINA2, ENCODER, ROUNDED = "lumina2_png", "lumina2_te_qfloat8", "lumina2_jpg"


@pytest.fixture(scope="module")
def kept() -> Engine:
    return Engine(PlainMachine())


def judged(
    engine: Engine,
    name: str,
    folder: Path,
    steps: str,
    changed: Callable[[PipelineHandle], PipelineHandle] = lambda base: base,
    recipe: str = TRAINER_PREVIEW,
    width: int | None = None,
) -> list[Judged]:
    """The job's first sample, on its base with its dtype and quantisation but for what is changed."""
    job = open_job(GOLDEN / "jobs" / name)
    if width is not None:
        samples = (replace(job.samples[0], width=width),)
        job = replace(job, samples=samples, first_samples=samples)
    wanted = wanted_model(job.model)
    base = replace(recorded_base(job.model.arch), dtype=wanted.dtype, options=wanted.options)
    grid = make_grid(job, changed(base), select(job, steps, "0"), job.folder)
    cells = tuple(replace(cell, request=replace(cell.request, recipe=recipe)) for cell in grid.cells)
    outcomes = render_grid(engine, replace(grid, cells=cells), CellStore(folder), SILENT)
    return list(judge(job, outcomes, grid.recipes))


def known(causes: tuple[Cause, ...]) -> list[str]:
    """Those that differ or may, likely ones first."""
    return [cause.name for cause in causes if cause.standing is not Standing.UNKNOWN]


def _options(**values: object) -> Callable[[PipelineHandle], PipelineHandle]:
    return lambda base: replace(base, options=replace(base.options, **values))


# what is changed -> the job, the change, and what is named; the base's name is not that of the job in any recording
CHANGES = {
    "dtype": (LUMINA2, {"changed": lambda base: replace(base, dtype="bfloat16")}, ["dtype", "base"]),
    "text encoder": (
        ENCODER,
        {"changed": _options(text_encoder_quantization="none")},
        ["text_encoder_quantization", "base"],
    ),
    "transformer": (LUMINA2, {"changed": _options(transformer_quantization="qfloat8")}, ["quantization", "base"]),
    "recipe": (LUMINA2, {"recipe": "sd-scripts"}, ["era", "base"]),
    "another reference": (LUMINA2, {"recipe": "reference pipeline"}, ["era", "base"]),
    "size": (LUMINA2, {"width": 96}, ["snapping", "base"]),
    "step caching": (LUMINA2, {"changed": _options(step_caching=1.0)}, ["step_caching", "base"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_deliberate_difference_is_named_first(kept, tmp_path, what):
    name, how, expected = CHANGES[what]
    (one,) = judged(kept, name, tmp_path, "0", **how)
    assert one.comparison is not None
    assert one.comparison.verdict in (Verdict.SAME_PICTURE, Verdict.DIFFERENT), "it changes the picture"
    assert known(one.causes) == expected


def test_another_base_is_named_first(kept, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "lumina2" / "base", tmp_path / "other"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: value * 1.01 for key, value in weights.items()}, file)
    other = Checkpoint.open(folder, "other", find_model("lumina2").files)
    (one,) = judged(kept, LUMINA2, tmp_path / "cells", "0", lambda base: replace(base, checkpoint=other))
    assert one.comparison is not None
    assert one.comparison.verdict is not Verdict.IDENTICAL
    assert known(one.causes) == ["base"]


def test_a_lora_that_was_saved_rounded_and_merges_before_are_named(kept, tmp_path):
    base, first, later = judged(kept, ROUNDED, tmp_path, "0,250,500")
    assert known(first.causes)[0] == "lora_precision"
    assert known(later.causes)[0] == "lora_precision"
    equal = base.comparison is not None and base.comparison.verdict is Verdict.IDENTICAL
    # an equal picture of step 0 clears the base
    assert known(first.causes)[1:] == ([] if equal else ["base"])
    assert known(later.causes)[1:] == ([] if equal else ["base"]) + ["merge_drift"]


def test_a_lora_that_is_applied_in_another_way_is_named(kept, tmp_path):
    """Live where the trainer merged; a quantised transformer has that consequence."""
    (one,) = judged(kept, LUMINA2, tmp_path, "250", _options(transformer_quantization="qfloat8"))
    assert known(one.causes) == ["quantization", "lora_application", "base"]


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("lumina2_png", "0,600", []),
        ("lumina2_te_qfloat8", "0,600", []),
        ("flux2_control", "0,600", []),
        ("omnigen2_control", "0,600", ["lora_precision"]),
        ("lumina2_jpg", "0,500", ["lora_precision"]),
    ],
)
def test_nothing_is_accused_where_all_is_as_in_the_job(kept, tmp_path, name, steps, expected):
    for one in judged(kept, name, tmp_path, steps):
        differs = [cause.name for cause in one.causes if cause.standing is Standing.DIFFERS]
        assert differs == (expected if one.outcome.place.step else []), one.outcome.place
