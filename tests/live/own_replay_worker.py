"""Replays a whole job's folder with this pack's pipelines, in any interpreter.

    PYTHON own_replay_worker.py JOB.json

JOB.json: ``folder``, the job's; ``checkpoint``, the base's folder; ``adapter``, the training adapter's file or null;
``initial``, the file of the LoRA that the training began with, or null; ``out``, a folder, which gets our picture of
each cell under the name that the trainer's has; and ``report.json``, with the causes of each difference by that name.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(job_path: str) -> None:
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    tasks.load_pack()

    from comfyui_aitk.pipelines.engine.engine import Engine
    from comfyui_aitk.pipelines.files.header import FileStamp
    from comfyui_aitk.pipelines.handle import PipelineHandle
    from comfyui_aitk.pipelines.jobs.folder import open_job
    from comfyui_aitk.pipelines.jobs.model_section import wanted_model
    from comfyui_aitk.pipelines.lora.training_adapter import with_training_adapter
    from comfyui_aitk.pipelines.machine.machine import PlainMachine
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.observer import SILENT
    from comfyui_aitk.pipelines.options import Chosen
    from comfyui_aitk.pipelines.replay.replay import replay
    from comfyui_aitk.pipelines.replay.selection import select
    from comfyui_aitk.pipelines.replay.store import CellStore
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
    from transformers import Gemma2Model

    asked = json.loads(Path(job_path).read_text())
    out, folder = Path(asked["out"]), Path(asked["checkpoint"])
    job = open_job(Path(asked["folder"]))
    if asked["initial"]:
        file = FileStamp.of(Path(asked["initial"]))
        job = replace(job, checkpoints=tuple(replace(one, file=one.file or file) for one in job.checkpoints))
    wanted = wanted_model(job.model)
    model = find_model(wanted.id)
    options = wanted.options
    if model.id == "lumina2":
        # what a plain Gemma2 does under this version of transformers, which AI Toolkit leaves as it is
        attention = "no softcap" if Gemma2Model._supports_sdpa else "softcap"
        options = replace(options, own=Chosen.of({"text_encoder_attention": attention}))
    base = PipelineHandle(model.id, Checkpoint.open(folder, folder.name, model.files), wanted.dtype, options)
    if asked["adapter"]:
        base = with_training_adapter(base, Path(asked["adapter"]), "adapter", model)
    report = {}
    store = CellStore(out / "cells")
    for one in replay(Engine(PlainMachine()), job, base, select(job), job.folder, store, SILENT):
        assert one.preview is not None
        assert one.outcome.picture is not None, one.outcome.error
        name = one.preview.file.path.name
        shutil.copy(one.outcome.picture, out / name)
        report[name] = [[cause.name, cause.standing.name] for cause in one.causes]
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
