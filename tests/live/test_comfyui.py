"""A real ComfyUI server with this pack in it, driven over its HTTP and websocket API.

    COMFYUI_PATH=<ComfyUI> COMFYUI_PYTHON=<its interpreter, with requirements.txt of this pack> \\
        python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.server import run_on_server
from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint, make_lora
from comfyui_aitk.pipelines.errors import WorkflowError
from diffusers import AutoencoderKL
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("COMFYUI_PATH", "COMFYUI_PYTHON")
EXAMPLE = ROOT / "example_workflows" / "LoRA - Lumina Image 2.0.json"
SETS = [
    "LoadAITKModel.weights=tiny", "LoadAITKModel.dtype=float32", "ApplyAITKLoRA.lora_name=tiny.safetensors",
    "AITKSampler.width=128", "AITKSampler.height=64", "AITKSampler.steps=4",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in SETTINGS), reason=f"needs ComfyUI: set {' and '.join(SETTINGS)}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The tiny model with a full-width autoencoder, which is also there as ``vae/ae.safetensors``."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("flux_vae", Path(__file__).with_name("flux_vae.py"))
    assert spec is not None and spec.loader is not None
    flux_vae = module_from_spec(spec)
    spec.loader.exec_module(flux_vae)

    folder = tmp_path_factory.mktemp("models")
    checkpoint = make_checkpoint(folder / "diffusers" / "tiny")
    make_lora(folder / "loras" / "tiny.safetensors", checkpoint, trigger_word="t1ny")
    ae = flux_vae.make_ae(folder / "vae" / "ae.safetensors")
    config = json.loads((checkpoint / "vae" / "config.json").read_text())
    config |= {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    (checkpoint / "vae" / "config.json").write_text(json.dumps(config))
    vae = AutoencoderKL.from_single_file(
        str(ae), config=str(checkpoint), subfolder="vae", torch_dtype=torch.bfloat16, local_files_only=True
    )
    shutil.rmtree(checkpoint / "vae")
    vae.save_pretrained(checkpoint / "vae")
    return folder


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """A server of its own base folder; yields its address."""
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    # any folder name will do, also one that is no Python name
    (base / "custom_nodes" / "comfyui-aitk 1.0").symlink_to(ROOT, target_is_directory=True)
    (base / "models").symlink_to(models, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    comfyui = Path(os.environ["COMFYUI_PATH"])
    command = [
        os.environ["COMFYUI_PYTHON"], "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
        "--base-directory", str(base), "--disable-api-nodes", "--preview-method", "latent2rgb",
        "--database-url", f"sqlite:///{base / 'comfyui.db'}",
    ]  # fmt: skip
    log = base / "comfyui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=comfyui, stdout=stream, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urlopen(f"{url}/object_info", timeout=30).read()
            return
        except URLError:
            time.sleep(0.5)
    pytest.fail(f"no answer from ComfyUI: {log.read_text()[-3000:]}")


def _run(server: str, output: Path, sets: list[str], progress=lambda line: None):
    document = json.loads(EXAMPLE.read_text())
    return run_on_server(document, server, sets=sets, output=output, input=None, progress=progress)


def test_the_example_runs_with_step_progress_and_gives_the_headless_picture(server, models, tmp_path):
    lines: list[str] = []
    made = _run(server, tmp_path / "server", SETS, lines.append)
    steps = [line.split("step ")[1] for line in lines if "step " in line]
    assert steps == ["1/4", "2/4", "3/4", "4/4"]
    (report,) = made.reports.values()
    assert report["work"]["parts_loaded"] == 3
    arguments = [str(EXAMPLE), "--models", str(models), "--output", str(tmp_path / "here"), "--device", "cpu"]
    assert run_command([*arguments, *(part for value in SETS for part in ("--set", value))]) == 0
    (here,) = (tmp_path / "here").glob("*.png")
    difference = np.abs(_pixels(made.images[0]) - _pixels(here))
    # two builds of torch
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_an_interrupted_run_ends_at_a_step_and_the_next_one_works(server, tmp_path):
    sets = [*SETS, "AITKSampler.steps=60", "AITKSampler.seed=5"]
    seen: list[str] = []

    def stop_at_third(line: str) -> None:
        seen.append(line)
        if "step 3/60" in line:
            urlopen(Request(f"{server}/interrupt", data=b"{}", method="POST"), timeout=30)

    with pytest.raises(WorkflowError, match="The run was stopped on the server, in node 3"):
        _run(server, tmp_path, sets, stop_at_third)
    assert not [line for line in seen if "step 60/60" in line]
    # nothing that was loaded is lost
    made = _run(server, tmp_path, [*SETS, "AITKSampler.seed=6"])
    (report,) = made.reports.values()
    assert report["work"]["parts_loaded"] == 0
    assert report["work"]["texts_encoded"] == 0


def test_names_that_lead_out_of_the_folders_are_refused_before_the_run(server, tmp_path):
    for value in ("ApplyAITKLoRA.lora_name=../loras/tiny.safetensors", "LoadAITKModel.weights=/etc"):
        with pytest.raises(WorkflowError, match="is refused: a workflow may only name files inside"):
            _run(server, tmp_path, [*SETS, value])


def test_core_nodes_work_on_our_latent(server, tmp_path):
    """VAEDecode gives our picture; VAEEncode and LatentUpscale give latents that the sampler takes."""
    sampler = {
        "pipeline": ["load", 0], "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 2,
        "guidance_scale": 4.0, "seed": 1, "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "",
        "batch_size": 1,
    }  # fmt: skip
    graph = {
        "load": _node("LoadAITKModel", model="lumina2", weights="tiny", dtype="float32"),
        "vae": _node("VAELoader", vae_name="ae.safetensors"),
        "first": _node("AITKSampler", **sampler),
        "decode": _node("VAEDecode", samples=["first", 4], vae=["vae", 0]),
        "encode": _node("VAEEncode", pixels=["first", 0], vae=["vae", 0]),
        "again": _node("AITKSampler", **sampler | {"latent": ["encode", 0], "denoise": 0.02, "seed": 2, "steps": 1}),
        "upscale": _node(
            "LatentUpscale", samples=["first", 4], upscale_method="bilinear", width=128, height=96, crop="disabled"
        ),
        "large": _node("AITKSampler", **sampler | {"latent": ["upscale", 0], "denoise": 0.5, "seed": 3}),
    }
    for name, source in {"ours": "first", "core": "decode", "again": "again", "large": "large"}.items():
        graph[f"save {name}"] = _node("SaveImage", images=[source, 0], filename_prefix=name)
    made = run_on_server(graph, server, sets=[], output=tmp_path, input=None, progress=lambda line: None)
    pictures = {path.name.split("_")[0]: _pixels(path) for path in made.images}
    # core truncates to 8 bits where the trainer rounds
    assert np.abs(pictures["ours"] - pictures["core"]).max() <= 1
    assert pictures["large"].shape == (96, 128, 3)
    assert pictures["again"].shape == (64, 64, 3)
    assert made.reports["large"]["size"] == {"asked": "the latent's", "rendered": [128, 96]}


def _node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)
