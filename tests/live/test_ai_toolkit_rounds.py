"""Several preview rounds of AI Toolkit's own code in one process, and a replay of their folder: identical to the bit.

A round that merges its LoRA leaves the weights changed for those after it; at a negative multiplier by all of the LoRA.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from comfyui_aitk.headless.tiny import lumina2 as tiny_lumina2
from comfyui_aitk.headless.tiny import z_image as tiny_z_image
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
Z_IMAGE = HERE.parent / "golden" / "zimage"
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")
NAME = "fox"
FOX = {
    "prompt": "a red fox, morning light", "neg": "", "width": 64, "height": 64, "seed": 7, "sample_steps": 3,
    "guidance_scale": 4.0, "network_multiplier": -0.6,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 112, "seed": 123456789, "neg": "blurry", "guidance_scale": 2.5}
LUMINA2 = {"arch": "lumina2", "worker": "ai_toolkit_worker", "options": {"sampler": "flowmatch"}}
TURBO = {"arch": "zimage:turbo", "worker": "ai_toolkit_z_image_worker", "options": {}}
LORAS = {
    "lumina2 lora": tiny_lumina2.make_lora, "zimage:turbo lora": tiny_z_image.make_lora,
    "zimage:turbo lokr": tiny_z_image.make_lokr,
}  # fmt: skip
STEPS = (250, 500, 600)
JOBS = {
    "LoRA": LUMINA2 | {"processes": [STEPS]},
    "LoRA at a positive multiplier": LUMINA2 | {"processes": [STEPS], "multipliers": (0.8, 0.8)},
    "LoRA above a training adapter": TURBO | {"processes": [STEPS], "adapter": True},
    "LoKr": TURBO | {"processes": [STEPS], "network": "lokr"},
    # taken up at 500
    "LoRA, restarted": LUMINA2 | {"processes": [(250, 500), (600, 750, 800)]},
    "LoRA, merged in a round of the beginning and live in the others": LUMINA2 | {
        "processes": [STEPS], "multipliers": (1.0, -0.5), "first": (-0.7, -0.7),
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_a_replay_of_several_rounds_is_identical_to_the_bit(models, tmp_path, name, dtype):
    if not all(os.environ.get(name) for name in SETTINGS):
        pytest.skip(f"needs AI Toolkit: set {' and '.join(SETTINGS)}")
    job = JOBS[name]
    base = models / "diffusers" / "tiny" if job["arch"] == "lumina2" else Z_IMAGE / "base"
    adapter = str(Z_IMAGE / "lora" / "adapter_f16.safetensors") if job.get("adapter") else None
    folder, out = tmp_path / NAME, tmp_path / "ours"
    for new in (folder / "samples", folder / "logs", out):
        new.mkdir(parents=True)
    items = [item | {"network_multiplier": by} for item, by in zip((FOX, TALL), _multipliers(job), strict=True)]
    first = [item | {"network_multiplier": by} for item, by in zip((FOX, TALL), job.get("first", ()), strict=False)]
    loras = _loras(job, base, folder)
    initial = str(loras[0]) if first else None
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(job, dtype, str(base), items, first, initial, adapter)))
    asked = {
        **{key: job[key] for key in ("worker", "options")}, "checkpoint": str(base), "dtype": dtype,
        "assistant_lora_path": adapter, "samples": str(folder / "samples"),
    }  # fmt: skip
    at_start = [*([(0, first)] if first else []), (0, items)]
    for number, steps in enumerate(job["processes"]):
        rounds = [*([] if number else at_start), *((step, items) for step in steps)]
        _write_log(folder, number, job["processes"])
        asked["rounds"] = [{"step": step, "lora": str(loras[step]), "items": drawn} for step, drawn in rounds]
        (tmp_path / "theirs.json").write_text(json.dumps(asked))
        _run("ai_toolkit_rounds_worker.py", tmp_path / "theirs.json")
    own = {"folder": str(folder), "checkpoint": str(base), "adapter": adapter, "initial": initial, "out": str(out)}
    (tmp_path / "ours.json").write_text(json.dumps(own))
    _run("own_replay_worker.py", tmp_path / "ours.json")
    report = json.loads((out / "report.json").read_text())
    # where two rounds have the name of step 0, the later one's pictures are the job's
    assert len(report) == len(items) * (1 + sum(map(len, job["processes"])))
    assert not any(report.values()), report
    for picture in report:
        theirs, ours = (np.asarray(Image.open(where / picture)) for where in (folder / "samples", out))
        assert np.array_equal(theirs, ours), picture


def _multipliers(job: dict) -> tuple[float, float]:
    return job.get("multipliers", (-0.6, -0.6))


def _loras(job: dict, base: Path, folder: Path) -> dict[int, Path]:
    """Step -> the network as it was there, saved in float32; at 0 it adds nothing, unless training began with it."""
    make = LORAS[f"{job['arch']} {job.get('network', 'lora')}"]
    found = {}
    for seed, step in enumerate((0, *(step for steps in job["processes"] for step in steps))):
        where = folder / f"{NAME}_{step:09}.safetensors" if step else folder.parent / "beginning.safetensors"
        found[step] = make(where, base, seed=seed + 1, dtype=torch.float32)
    if not job.get("first"):
        up = ("lora_B", "lokr_w2")
        fresh = {key: value * (not any(one in key for one in up)) for key, value in load_file(found[0]).items()}
        save_file(fresh, found[0])
    return found


def _config(
    job: dict, dtype: str, base: str, items: list[dict], first: list[dict], initial: str | None, adapter: str | None
) -> dict:
    section = {"sampler": "flowmatch", "sample_every": 250, "format": "png"}
    process = {
        "type": "diffusion_trainer",
        "network": {"type": job.get("network", "lora"), "pretrained_lora_path": initial},
        "save": {"save_every": 50, "max_step_saves_to_keep": 9, "dtype": "fp32"},
        "train": {"steps": 1000, "dtype": dtype, "noise_scheduler": "flowmatch"},
        "model": {"name_or_path": base, "arch": job["arch"], "assistant_lora_path": adapter},
        "sample": section | {"samples": items},
    }
    if first:
        process["first_sample"] = section | {"samples": first}
    return {"job": "extension", "config": {"name": NAME, "process": [process]}}


def _write_log(folder: Path, number: int, processes: list[tuple[int, ...]]) -> None:
    """The log that the web interface leaves of a process."""
    name = "log.txt" if number == len(processes) - 1 else f"logs/{number}_log.txt"
    found = f"Found step {processes[number - 1][-1]} in metadata, starting from there\n" if number else ""
    (folder / name).write_text(found)


def _run(script: str, job: Path) -> None:
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script), str(job)]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
