"""One picture over two processes is the picture of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.tiny import flux2, lumina2
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def graph(model: str, prompt: str = "a fox") -> dict:
    sample = {
        "pipeline": ["load", 0], "prompt": prompt, "negative_prompt": "", "width": 64, "height": 64, "steps": 2,
        "guidance_scale": 4.0, "seed": 1, "recipe": "trainer preview", "trigger_word": "", "system_prompt": "",
        "batch_size": 1,
    }  # fmt: skip
    save = {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"}
    load = {"model": model, "weights": "tiny", "dtype": "float32"}
    return {
        "load": {"class_type": "LoadAITKModel", "inputs": load},
        "sample": {"class_type": "AITKSampler", "inputs": sample},
        "save": {"class_type": "AITKSaveImage", "inputs": save},
    }


def run(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    script = str(Path(__file__).with_name("shared_run.py"))
    own = ["run", str(folder / "graph.json"), "--models", str(folder), "--device", "cpu"][1:]
    arguments = [script, *own, "--output", str(folder / f"by {processes}")]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(many if processes > 1 else []), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def make_flux2(folder: Path) -> None:
    flux2.make_checkpoint(folder)


def take_qwen_image(folder: Path) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "qwen_image" / "base", folder)


# one of two prompts has a token more than the processes divide: FLUX.2 fills texts up, Qwen-Image does not
@pytest.mark.parametrize(
    ("model", "make", "prompt"),
    [("flux2", make_flux2, "a fox"), ("qwen_image", take_qwen_image, "a"), ("qwen_image", take_qwen_image, "a fox")],
)
def test_two_processes_render_the_picture_of_one(tmp_path, model, make, prompt):
    make(tmp_path / "diffusers" / "tiny")
    (tmp_path / "graph.json").write_text(json.dumps(graph(model, prompt)))
    pictures = []
    for processes in (1, 2):
        done = run(tmp_path, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        (saved,) = (tmp_path / f"by {processes}").glob("*.png")
        assert done.stdout.split("\n")[0] == str(saved), "the first process alone says so"
        assert len(done.stdout.split("\n")) == 2
        pictures.append(np.asarray(Image.open(saved)).astype(int))
    # sums over other parts of the tokens round elsewhere: float32's last bits
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize("model", ["lumina2"])
def test_a_model_that_cannot_be_shared_out_says_so(tmp_path, model):
    lumina2.make_checkpoint(tmp_path / "diffusers" / "tiny")
    (tmp_path / "graph.json").write_text(json.dumps(graph(model)))
    done = run(tmp_path, 2)
    assert done.returncode != 0
    assert "Lumina Image 2.0 cannot be rendered over 2 processes" in done.stderr
    assert not list((tmp_path / "by 2").glob("*.png"))
