"""What a shared picture and its report hold: the graph and the files' digests, and nothing of the one who made it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.tiny import containers
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.run import report as reports

USER, TOKEN = "Wilhelmina", "hf_QZ7Xq1secretsecret"
PARTS = {"text_encoder": "gemma.safetensors", "vae": "ae.safetensors"}
SAMPLER = {
    "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0, "seed": 1,
    "recipe": "trainer preview", "trigger_word": "", "system_prompt": "", "batch_size": 1,
}  # fmt: skip


@pytest.fixture
def home(host, models: Path, tmp_path: Path, monkeypatch) -> Path:
    """A user's home folder with models, a cache and a token in it."""
    home = tmp_path / "home" / USER
    tiny = shutil.copytree(models / "diffusers" / "tiny", home / "models" / "diffusers" / "tiny")
    (home / "models" / "loras").mkdir()
    shutil.copy(models / "loras" / "tiny.safetensors", home / "models" / "loras")
    containers.write_dit(home / "models" / "diffusion_models" / "dit.safetensors", tiny)
    containers.write_gemma2(home / "models" / "text_encoders" / "gemma.safetensors", tiny)
    containers.write_ae(home / "models" / "vae" / "ae.safetensors", tiny)
    for name in ("HOME", "USERPROFILE", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    for name in ("USER", "USERNAME", "LOGNAME"):
        monkeypatch.setenv(name, USER)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    use_host(PlainHost(home / "models", home / "input", home / "output", "cpu", embeddings=home / "embeddings"))
    return home


def _graph(weights: str, format: str = "png", **parts: str) -> dict:
    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "load": node("LoadAITKModel", model="lumina2", weights=weights, dtype="float32", **parts),
        "lora": node(
            "ApplyAITKLoRA", pipeline=["load", 0], lora_name="tiny.safetensors", strength=1.0, application="auto"
        ),
        "sample": node("AITKSampler", pipeline=["lora", 0], **SAMPLER),
        "save": node("AITKSaveImage", images=["sample", 0], report=["sample", 6], filename_prefix="x", format=format),
    }


def _report(graph: dict) -> dict:
    return json.loads(run_prompt(graph, NODE_CLASS_MAPPINGS).results["sample"][6])


def _digests(report: dict) -> dict[str, str | None]:
    return {file["parts"][0]: file["sha256"] for file in report["model"]["files"]}


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_nothing_saved_tells_whose_it_is(home, format):
    for weights, parts in (("tiny", {}), ("dit.safetensors", PARTS)):
        graph = _graph(weights, format, **parts)
        workflow = {"workflow": {"nodes": [], "links": [], "version": 0.4}}
        results = run_prompt(graph, NODE_CLASS_MAPPINGS, extra_pnginfo=workflow).results
        path = max((home / "output").glob(f"*.{format}"))
        content = path.read_bytes() + results["sample"][6].encode()
        assert b"fingerprint" in content
        assert b"tiny.safetensors" in content
        for secret in (USER, TOKEN, str(home), str(home.parents[1])):
            assert secret.encode() not in content
            assert secret.encode("utf-16-le") not in content
        # what was kept beside it holds no name either
        assert not [file for file in (home / "embeddings").rglob("*") if USER.encode() in file.read_bytes()]


def test_the_report_names_the_files_that_made_the_picture(home):
    report = _report(_graph("dit.safetensors", **PARTS))
    files = {"transformer": "diffusion_models/dit.safetensors", "text_encoder": "text_encoders/gemma.safetensors"}
    files |= {"vae": "vae/ae.safetensors"}
    assert report["model"]["files"] == [
        {
            "name": path.name,
            "parts": [part],
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for part, path in ((part, home / "models" / file) for part, file in files.items())
    ]
    lora = (home / "models" / "loras" / "tiny.safetensors").read_bytes()
    assert report["loras"][0]["sha256"] == hashlib.sha256(lora).hexdigest()


def test_no_run_waits_for_the_digest_of_a_large_file(home, monkeypatch):
    monkeypatch.setattr(reports, "LARGE", 0)
    read = []
    monkeypatch.setattr(reports, "digest", read.append)
    digests = _digests(_report(_graph("tiny")))
    assert digests["transformer"] is digests["vae"] is None
    # its embedding on the disk is kept under it
    assert digests["text_encoder"] is not None
    assert [stamp.path.name for stamp in read] == ["tiny.safetensors"], "a LoRA's alone"


def test_the_hub_s_own_digest_is_taken(home, monkeypatch):
    monkeypatch.setattr(reports, "LARGE", 0)
    vae = home / "models" / "diffusers" / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    content = vae.read_bytes()
    blob = home / "hub" / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir(parents=True)
    vae.rename(blob)
    vae.symlink_to(blob)
    digests = _digests(_report(_graph("tiny")))
    assert digests["transformer"] is None
    assert digests["vae"] == blob.name
