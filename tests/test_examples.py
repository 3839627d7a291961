"""Every example workflow runs, as it is shipped, on a tiny model; and it opens in the template browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.tiny import containers
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.models import catalogue
from PIL import Image

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "example_workflows").glob("*.json"))
SMALL = ["AITKSampler.width=64", "AITKSampler.height=64", "AITKSampler.steps=2"]
RELEASED = "default"  # weights from the hub
PARTS = {"text_encoder": "gemma_2_2b_fp16.safetensors", "vae": "ae.safetensors"}
# example of a source -> where its report says that the weights come from
WEIGHTS = {
    "lumina2_single_files": {"transformer": "lumina_2_model_bf16.safetensors", **PARTS},
    "lumina2_all_in_one": "lumina_2.safetensors",
    "lumina2_pth": {"transformer": "consolidated.00-of-01.pth", **PARTS},
    "lumina2_gguf": {"transformer": "lumina2-q8_0.gguf", **PARTS},
    "lumina2_kohya_lora": {"transformer": "lumina_2_model_bf16.safetensors", **PARTS},
}


@pytest.fixture(scope="module")
def own_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in every container, under the names that the examples have."""
    folder = tmp_path_factory.mktemp("examples")
    tiny = folder / "diffusers" / "tiny"
    shutil.copytree(models / "diffusers" / "tiny", tiny)
    (folder / "loras").mkdir()
    shutil.copy(models / "loras" / "tiny.safetensors", folder / "loras" / "my_lora.safetensors")
    write_kohya(folder / "loras" / "my_kohya_lora.safetensors", tiny, text_encoder=True)
    containers.write_dit(folder / "diffusion_models" / "lumina_2_model_bf16.safetensors", tiny)
    containers.write_pth(folder / "diffusion_models" / "consolidated.00-of-01.pth", tiny)
    containers.write_gguf(folder / "unet" / "lumina2-q8_0.gguf", tiny, quant="Q8_0")
    containers.write_all_in_one(folder / "checkpoints" / "lumina_2.safetensors", tiny)
    containers.write_gemma2(folder / "text_encoders" / "gemma_2_2b_fp16.safetensors", tiny)
    containers.write_ae(folder / "vae" / "ae.safetensors", tiny)
    return folder


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(host, own_models, path, tmp_path):
    document = json.loads(path.read_text())
    assert {"nodes", "links", "version"} <= document.keys(), "only the editor's format opens from the template browser"
    types = {node["type"] for node in document["nodes"]}
    report, picture = _run(path, own_models, tmp_path)
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


@pytest.mark.parametrize("name", WEIGHTS)
def test_example_of_a_source_takes_the_files_that_it_names(host, own_models, name, tmp_path):
    path = EXAMPLES[0].with_name(f"{name}.json")
    report, picture = _run(path, own_models, tmp_path / "own")
    assert report["model"]["weights"] == WEIGHTS[name]
    if name == "lumina2_kohya_lora":
        assert report["recipe"] == "sd-scripts"
        assert report["guidance"]["while_model_time_below"] == 0.25
        assert [lora["arithmetic"] for lora in report["loras"]] == ["live, sd-scripts"]
        return
    # the values of the folder by another way; blocks of 8 bits are near them
    folder = EXAMPLES[0].with_name("lumina2_text_to_image.json")
    _, expected = _run(folder, own_models, tmp_path / "folder")
    distance = np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean()
    assert distance < 2 if name == "lumina2_gguf" else distance == 0


def _run(path: Path, models: Path, output: Path) -> tuple[dict, Image.Image]:
    """The report and the picture of an example at a small size; only weights from the hub are replaced."""
    document = json.loads(path.read_text())
    (loader,) = [node for node in document["nodes"] if node["type"] == "LoadAITKModel"]
    sets = [*SMALL, *(["LoadAITKModel.weights=tiny"] if loader["widgets_values"][1] == RELEASED else [])]
    arguments = [str(path), "--models", str(models), "--output", str(output), "--report", str(output / "r.json")]
    for value in sets:
        arguments += ["--set", value]
    assert run_command([*arguments, "--device", "cpu"]) == 0
    made = json.loads((output / "r.json").read_text())
    (report,) = made["reports"].values()
    (name,) = made["images"]
    return report, Image.open(output / name)


def test_every_node_that_a_model_can_use_is_in_an_example():
    types = {node["type"] for path in EXAMPLES for node in json.loads(path.read_text())["nodes"]}
    # no model of the catalogue takes control images yet
    takes_control = any(model.control_images for model in catalogue().values())
    assert types >= NODE_CLASS_MAPPINGS.keys() - (set() if takes_control else {"AITKControlImages"})
