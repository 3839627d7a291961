"""Every example workflow runs, as it is shipped, on a tiny model; and it opens in the template browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.models import catalogue
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


def test_every_node_that_a_model_can_use_is_in_an_example():
    types = {node["type"] for path in EXAMPLES for node in json.loads(path.read_text())["nodes"]}
    # no model of the catalogue takes control images yet
    takes_control = any(model.control_images for model in catalogue().values())
    assert types >= NODE_CLASS_MAPPINGS.keys() - (set() if takes_control else {"AITKControlImages"})
