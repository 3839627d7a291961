"""Every example workflow runs, as it is shipped, on a tiny model; and it opens in the template browser."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.tiny import containers, flux2, omnigen2, z_image
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from PIL import Image
from rendering import put_into_cache

pytestmark = pytest.mark.usefixtures("kept_engine")

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "example_workflows").glob("*.json"))
OF_A_JOB = EXAMPLES[0].with_name("replay_one_checkpoint.json")  # has no sampler
GOLDEN = Path(__file__).parent / "golden"
SMALL = ["AITKSampler.width=64", "AITKSampler.height=64", "AITKSampler.steps=2"]
RELEASED = "default"  # weights from the hub
TINY = "tiny"  # what replaces them: that model's tiny checkpoint
PARTS = {"text_encoder": "gemma_2_2b_fp16.safetensors", "vae": "ae.safetensors"}
Z_IMAGE_PARTS = {"text_encoder": "qwen_3_4b.safetensors", "vae": "ae.safetensors"}
# example of a source -> where its report says that the weights come from
WEIGHTS = {
    "lumina2_single_files": {"transformer": "lumina_2_model_bf16.safetensors", **PARTS},
    "lumina2_all_in_one": "lumina_2.safetensors",
    "lumina2_pth": {"transformer": "consolidated.00-of-01.pth", **PARTS},
    "lumina2_gguf": {"transformer": "lumina2-q8_0.gguf", **PARTS},
    "lumina2_kohya_lora": {"transformer": "lumina_2_model_bf16.safetensors", **PARTS},
    "flux2_single_files": {
        "transformer": "flux2_dev_fp8mixed.safetensors",
        "text_encoder": "mistral_3_small_flux2_fp8.safetensors",
        "vae": "flux2-vae.safetensors",
    },
    "z_image_turbo_single_files": {"transformer": "z_image_turbo_bf16.safetensors", **Z_IMAGE_PARTS},
    "z_image_turbo_gguf": {"transformer": "z_image_turbo-q8_0.gguf", **Z_IMAGE_PARTS},
}
# mean distance from the picture of the unquantised folder, in levels of 255, where the weights are not the same
ROUNDED = {"lumina2_gguf": 2, "flux2_single_files": 20, "z_image_turbo_gguf": 2}
# the pictures that the examples load: name -> (width, height)
PICTURES = {
    "example.png": (80, 64), "my_image_1.png": (64, 96), "my_image_2.png": (100, 70), "my_image_3.png": (64, 64),
    "my_preview.png": (64, 64),
}  # fmt: skip


@pytest.fixture(scope="module")
def own_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> a models folder with its checkpoint ``tiny``, and with the files that its examples name."""
    folder = tmp_path_factory.mktemp("examples")
    return {
        "lumina2": _lumina2(folder / "lumina2", models),
        "flux2": _flux2(folder / "flux2"),
        "flux2_klein_4b": flux2.make_checkpoint(folder / "klein" / "diffusers" / TINY, "flux2_klein_4b").parents[1],
        "omnigen2": omnigen2.make_checkpoint(folder / "omnigen2" / "diffusers" / TINY).parents[1],
        **dict.fromkeys(("zimage", "zimage:turbo"), _z_image(folder / "z_image")),
    }


@pytest.fixture
def tokenizer(own_models: dict[str, Path], hub_cache: Path) -> None:
    """Z-Image's tokenizer in the hub's cache: its single files have none."""
    own = own_models["zimage"] / "diffusers" / TINY / "tokenizer"
    files = {f"tokenizer/{file.name}": file for file in own.iterdir()}
    put_into_cache(hub_cache, "Tongyi-MAI/Z-Image-Turbo", files)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of input pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, (width, height) in PICTURES.items():
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
    return folder


def _lumina2(folder: Path, models: Path) -> Path:
    tiny = folder / "diffusers" / TINY
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


def _flux2(folder: Path) -> Path:
    tiny = flux2.make_checkpoint(folder / "diffusers" / TINY)
    flux2.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    flux2.make_lora(folder / "loras" / "my_second_lora.safetensors", tiny, seed=2)
    plain = flux2.write_text_encoder(folder / "plain.safetensors", tiny)
    text_encoder = folder / "text_encoders" / "mistral_3_small_flux2_fp8.safetensors"
    containers.write_scaled_float8(text_encoder, plain, "old")
    transformer = folder / "diffusion_models" / "flux2_dev_fp8mixed.safetensors"
    containers.write_scaled_float8(transformer, tiny / flux2.FILES["flux2"], "metadata")
    (folder / "vae").mkdir()
    shutil.copy(tiny / flux2.VAE_FILE, folder / "vae" / "flux2-vae.safetensors")
    return folder


def _z_image(folder: Path) -> Path:
    # three heads: every row fills GGUF's blocks
    tiny = z_image.make_checkpoint(folder / "diffusers" / TINY, heads=3)
    z_image.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    z_image.make_lora(folder / "loras" / "zimage_turbo_training_adapter_v2.safetensors", tiny, seed=2)
    z_image.write_single_transformer(folder / "diffusion_models" / "z_image_turbo_bf16.safetensors", tiny)
    z_image.write_gguf(folder / "unet" / "z_image_turbo-q8_0.gguf", tiny, "Q8_0")
    z_image.write_single_text_encoder(folder / "text_encoders" / "qwen_3_4b.safetensors", tiny)
    containers.write_ae(folder / "vae" / "ae.safetensors", tiny)
    return folder


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path != OF_A_JOB], ids=lambda path: path.stem)
def test_example_runs(host, own_models, pictures, path, tmp_path):
    document = json.loads(path.read_text())
    assert {"nodes", "links", "version"} <= document.keys(), "only the editor's format opens from the template browser"
    types = Counter(node["type"] for node in document["nodes"])
    report, picture = _run(path, own_models, tmp_path, pictures)
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 10, "a picture, not one colour"
    assert json.loads(picture.text["workflow"]) == document
    assert json.loads(picture.text["aitk_report"]) == report
    # an adapter is listed as a LoRA, too; the example of a stack has two in it
    assert len(report["loras"]) == types["ApplyAITKLoRA"] + types["AITKTrainingAdapter"] + 2 * types["AITKLoRAStack"]
    # what is compared or encoded controls nothing
    uncontrolled = types["AITKComparePreviews"] + types["AITKEncodeImage"]
    assert len(report["control_images"]) == types["LoadImage"] - uncontrolled
    assert not [note for note in report["notes"] if "negative prompt" in note], "a text that does nothing"
    if "AITKRuntimeOptions" in types:
        assert report["model"]["quantization"]["text_encoder"] == "qfloat8"
    # the placeholders that a user replaces, and the catalogue's defaults
    (sampler,) = [node for node in document["nodes"] if node["type"] == "AITKSampler"]
    assert sampler["widgets_values"][2:4] == [1024, 1024]
    assert path.with_suffix(".jpg").is_file(), "the template browser shows a thumbnail of the same name"


@pytest.mark.usefixtures("tokenizer")
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
    folder = (f"LoadAITKModel.weights={TINY}", "LoadAITKModel.text_encoder=default", "LoadAITKModel.vae=default")
    _, expected = _run(path, own_models, tmp_path / "folder", sets=folder)
    distance = np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean()
    assert 0 < distance < ROUNDED[name] if name in ROUNDED else distance == 0


def _run(
    path: Path, models: dict[str, Path], output: Path, pictures: Path | None = None, sets: tuple[str, ...] = ()
) -> tuple[dict, Image.Image]:
    """The report and the picture of an example at a small size; replaced are weights from the hub, and ``sets``."""
    document = json.loads(path.read_text())
    (loader,) = [node for node in document["nodes"] if node["type"] == "LoadAITKModel"]
    model, weights = loader["widgets_values"][:2]
    sets = (*SMALL, *sets, *([f"LoadAITKModel.weights={TINY}"] if weights == RELEASED else []))
    arguments = [str(path), "--models", str(models[model]), "--output", str(output)]
    arguments += ["--report", str(output / "r.json"), *(["--input", str(pictures)] if pictures else [])]
    for value in sets:
        arguments += ["--set", value]
    assert run_command([*arguments, "--device", "cpu"]) == 0
    made = json.loads((output / "r.json").read_text())
    (report,) = made["reports"].values()
    (name,) = made["images"]
    return report, Image.open(output / name)


def test_the_example_of_a_job_gives_the_trainer_s_picture(host, tmp_path):
    shutil.copytree(GOLDEN / "lumina2" / "base", tmp_path / "models" / "diffusers" / TINY)
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", tmp_path / "jobs" / "my_job")
    output = tmp_path / "made"
    arguments = ["--models", str(tmp_path / "models"), "--input", str(tmp_path / "jobs"), "--output", str(output)]
    sets = ["--set", f"AITKTrainingJob.weights={TINY}", "--set", "AITKReplayPreviews.checkpoints=250"]
    assert run_command([str(OF_A_JOB), *arguments, *sets, "--device", "cpu"]) == 0
    (made,) = output.glob("aitk_*.png")
    (preview,) = (tmp_path / "jobs" / "my_job" / "samples").glob("*__000000250_0.png")
    difference = np.abs(np.asarray(Image.open(made)).astype(int) - np.asarray(Image.open(preview)))
    # other kernels change 1 level on less than 1 % of the values
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert OF_A_JOB.with_suffix(".jpg").is_file(), "the template browser shows a thumbnail of the same name"


def test_a_comparison_says_what_it_found(host, own_models, pictures, tmp_path, capfd):
    path = EXAMPLES[0].with_name("lumina2_compare_with_preview.json")
    _run(path, own_models, tmp_path / "noise", pictures)
    assert "node 8: Different: at most" in capfd.readouterr().err
    # our own picture takes the trainer's place
    (made,) = (tmp_path / "noise").glob("*.png")
    _run(path, own_models, tmp_path / "again", tmp_path / "noise", (f"LoadImage.image={made.name}",))
    assert "node 8: Identical pixels." in capfd.readouterr().err
    (sheet,) = (tmp_path / "again" / "temp").glob("*.png")
    assert Image.open(sheet).width > 3 * 64


def test_every_node_is_in_an_example():
    types = {node["type"] for path in EXAMPLES for node in json.loads(path.read_text())["nodes"]}
    assert types >= NODE_CLASS_MAPPINGS.keys()
