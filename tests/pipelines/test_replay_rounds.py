"""What earlier rounds left in the trainer's weights, in a replay: by a formula, and where a LoRA of theirs is gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from comfyui_aitk.pipelines.compare.causes import Standing
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.observer import SILENT
from comfyui_aitk.pipelines.replay.cell import Cell
from comfyui_aitk.pipelines.replay.grid import make_grid
from comfyui_aitk.pipelines.replay.replay import replay
from comfyui_aitk.pipelines.replay.selection import select
from comfyui_aitk.pipelines.replay.store import CellStore
from recorded_jobs import GOLDEN, recorded_base
from rendering import wanted
from safetensors.torch import load_file

LAYER = "layers.1.attn.to_q"
KINDS = ("earlier_rounds", "merge_drift", "spoiled_base")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def kept() -> Engine:
    return Engine(PlainMachine())


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "jobs" / "lumina2_png", tmp_path / "fox"))


def opened(folder: Path, multiplier: float, save_dtype: str = "fp32"):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    process = config["config"]["process"][0]
    process["sample"]["network_multiplier"], process["save"]["dtype"] = multiplier, save_dtype
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return open_job(folder)


def weight(engine: Engine, cell: Cell) -> torch.Tensor:
    run = wanted(engine, cell.handle, "trainer preview")
    engine.apply_loras(run, "transformer", SILENT)
    with engine.on_device(run, "transformer", SILENT) as transformer:
        return transformer.state_dict()[f"{LAYER}.weight"].clone()


def change(file: Path) -> torch.Tensor:
    tensors = load_file(file)
    up, down = (tensors[f"transformer.{LAYER}.lora_{one}.weight"].float() for one in "BA")
    return up @ down


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplier", [-0.5, 0.8])
def test_a_cell_s_weights_are_merged_and_taken_off_as_in_each_round_before(kept, folder, multiplier, dtype):
    job = opened(folder, multiplier)
    grid = make_grid(job, replace(recorded_base("lumina2"), dtype=dtype), select(job, samples="0"), folder)
    base, *cells = grid.cells
    now = weight(kept, base)
    changes = [change(one.file.path) for one in job.checkpoints if one.file]
    assert len(cells) == len(changes) == 3
    found = {}
    for cell, own in zip(cells, changes, strict=True):
        for times in (multiplier, -abs(multiplier)):
            now = (now.float() + times * own).to(DTYPES[dtype])
            # with the round's own LoRA
            found.setdefault(cell.place, now)
    for cell in reversed(cells):
        assert torch.equal(weight(kept, cell), found[cell.place]), cell.place
    for cell in cells:
        assert torch.equal(weight(kept, cell), found[cell.place]), cell.place


def test_what_cannot_be_made_again_is_drawn_without_it_and_said_of_these_pictures(kept, folder, tmp_path):
    carried = replayed(kept, opened(folder, -0.5), tmp_path / "cells")
    rounded = replayed(kept, opened(folder, 0.5, "fp16"), tmp_path / "cells")
    (folder / "fox_style_v1_000000250.safetensors").unlink()
    lost = replayed(kept, opened(folder, -0.5), tmp_path / "cells")
    names = {
        step: [
            [cause.name for cause in found[step].causes if cause.name in KINDS] for found in (carried, rounded, lost)
        ]
        for step in (0, 500)
    }
    assert names == {0: [[], [], []], 500: [["earlier_rounds"], ["merge_drift"], ["spoiled_base"]]}
    applied = [[one["strength"] for one in found[500].outcome.report["loras"]] for found in (carried, rounded, lost)]
    assert applied == [[-0.5, -0.5], [0.5], [-0.5]]
    assert [one.get("taken_off") for one in carried[500].outcome.report["loras"]] == [True, None]
    pictures = {found[500].outcome.picture.read_bytes() for found in (carried, rounded, lost)}
    assert len(pictures) == 3
    (cause,) = [one for one in lost[500].causes if one.name == "spoiled_base"]
    assert cause.standing is Standing.DIFFERS


def replayed(engine: Engine, job, store: Path) -> dict:
    """The recorded pictures are of another multiplier: each differs, and has its causes."""
    chosen = select(job, "0,500", "0")
    found = replay(engine, job, recorded_base("lumina2"), chosen, job.folder, CellStore(store), SILENT)
    return {one.outcome.place.step: one for one in found}
