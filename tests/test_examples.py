"""Every example workflow runs, as it is shipped, on a tiny model; and it opens in the template browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from PIL import Image

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "example_workflows").glob("*.json"))
SETS = ["LoadAITKModel.weights=tiny", "AITKSampler.width=64", "AITKSampler.height=64", "AITKSampler.steps=2"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(host, models, path, tmp_path):
    document = json.loads(path.read_text())
    assert {"nodes", "links", "version"} <= document.keys(), "only the editor's format opens from the template browser"
    types = {node["type"] for node in document["nodes"]}
    sets = [*SETS, "ApplyAITKLoRA.lora_name=tiny.safetensors"] if "ApplyAITKLoRA" in types else SETS
    arguments = [str(path), "--models", str(models), "--output", str(tmp_path), "--report", str(tmp_path / "r.json")]
    for value in sets:
        arguments += ["--set", value]
    assert run_command(arguments) == 0
    made = json.loads((tmp_path / "r.json").read_text())
    (report,) = made["reports"].values()
    (name,) = made["images"]
    picture = Image.open(tmp_path / name)
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 10, "a picture, not one colour"
    assert json.loads(picture.text["workflow"]) == document
    assert json.loads(picture.text["aitk_report"]) == report
    assert len(report["loras"]) == ("ApplyAITKLoRA" in types)
    if "AITKRuntimeOptions" in types:
        assert report["model"]["quantization"]["text_encoder"] == "qfloat8"
    # the placeholders that a user replaces, and the catalogue's defaults
    (sampler,) = [node for node in document["nodes"] if node["type"] == "AITKSampler"]
    assert sampler["widgets_values"][2:4] == [1024, 1024]
    assert path.with_suffix(".jpg").is_file(), "the template browser shows a thumbnail of the same name"


def test_there_is_an_example_for_each_feature():
    assert [path.stem for path in EXAMPLES] == ["lumina2_lora", "lumina2_text_to_image", "lumina2_trainer_preview"]
