"""Recorded training jobs, by what AI Toolkit itself noted of each picture: tests of replays do not read job folders."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import Lease, PipelineHandle
from comfyui_aitk.pipelines.jobs.job import JobCheckpoint, JobModel, JobPreview, JobSample, TrainingJob
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
# of a run's report: what a clock or the system's memory says, and what was loaded already
_OF_THE_DAY = ("seconds", "memory", "peak_memory", "work")


def recorded_job(name: str, folder: Path | None = None) -> TrainingJob:
    """A recorded job's value.

    Args:
        name: of the recording.
        folder: a copy of its folder; by default the recording's own.
    """
    notes = json.loads((GOLDEN / "jobs" / f"{name}.json").read_text())
    folder = folder or GOLDEN / "jobs" / name
    rounds = notes["rounds"]
    items = rounds[0]["items"]
    previews = [
        JobPreview(one["step"], item["index"], FileStamp.of(path))
        for one in rounds
        for item in one["items"]
        if (path := folder / "samples" / item["file"]).is_file()
    ]
    return TrainingJob(
        name=name,
        folder=folder,
        model=JobModel(notes["model"], notes["name_or_path"], "float32"),
        samples=tuple(_sample(item) for item in items),
        first_samples=tuple(_sample(item) for item in items),
        one_multiplier=len({item["multiplier"] for item in items}) == 1,
        format="jpg" if items[0]["file"].endswith("jpg") else "png",
        checkpoints=tuple(_checkpoint(one, folder) for one in rounds),
        previews=tuple(previews),
        save_dtype="float32",
    )


def _sample(item: dict) -> JobSample:
    first = item["ctrl_img"] or item["ctrl_img_1"]
    images = tuple(path for path in (first, item["ctrl_img_2"], item["ctrl_img_3"]) if path)
    return JobSample(
        item["index"], item["prompt"], item["negative_prompt"], item["width"], item["height"], item["steps"],
        float(item["guidance"]), item["seed"], float(item["multiplier"]), images,
    )  # fmt: skip


def _checkpoint(one: dict, folder: Path) -> JobCheckpoint:
    path = folder / one["lora"] if one["lora"] else None
    there = path is not None and path.is_file()
    missing = one["lora"] if one["lora"] and not there else ""
    file = FileStamp.of(path) if path and there else None
    return JobCheckpoint(one["step"], one["final"], base=not one["step"], file=file, missing=missing)


def recorded_base(model: str) -> PipelineHandle:
    """The checkpoint that a model's recorded jobs were trained on, in float32 and unquantised."""
    checkpoint = Checkpoint.open(GOLDEN / model / "base", "base", find_model(model).files)
    options = RuntimeOptions(transformer_quantization="none", text_encoder_quantization="none")
    return PipelineHandle(model, checkpoint, "float32", options, lease=Lease())


def copy_slow_job(folder: Path) -> None:
    """A copy of the recorded PNG job whose sample 1 takes long enough to be killed within."""
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", folder)
    config = folder / "config.yaml"
    text = config.read_text()
    assert text.count("--s 5 ") == 1
    config.write_text(text.replace("--s 5 ", "--s 60 "))


def moved(file: bytes, levels: int) -> bytes:
    """A picture with its upper half moved by some levels."""
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    pixels[: len(pixels) // 2] += np.where(pixels[: len(pixels) // 2] > 127, -levels, levels)
    written = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def replayed_files(folder: Path) -> dict[str, object]:
    """All that a replay wrote, by name, without what another run of the same says otherwise; the page holds both."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if not path.is_file() or path.suffix == ".html":
            continue
        content: object = path.read_bytes()
        if path.suffix == ".json":
            content = _lasting(json.loads(path.read_text("utf-8")))
        found[path.relative_to(folder).as_posix()] = content
    return found


def _lasting(report: dict) -> dict:
    cells = [
        {**cell, "found": None, "run": _lasting(cell["run"]), "oracle": cell["oracle"] and _lasting(cell["oracle"])}
        for cell in report.get("cells", ())
    ]
    left = {key: value for key, value in report.items() if key not in (*_OF_THE_DAY, "date", "cells")}
    if "record" in left:
        # of the engine's picture; a minute may end between two runs
        left["record"] = {key: value for key, value in left["record"].items() if key != "date"}
    return {**left, "cells": cells}
