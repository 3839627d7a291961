"""Every example workflow runs, as it is shipped, on a tiny model; and it opens in the template browser."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.templates.building import PICTURE
from comfyui_aitk.headless.templates.model_files import (
    COMFY_FILES,
    LUMINA_ALL_IN_ONE,
    RECOVERY_ADAPTER,
    TRAINING_ADAPTERS,
)
from comfyui_aitk.headless.tiny import containers, flux2, krea2, omnigen2, qwen_image, qwen_image_edit, z_image
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.headless.tiny.qwen_image_vae import write_wan_vae
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from PIL import Image
from rendering import put_into_cache

pytestmark = pytest.mark.usefixtures("kept_engine")

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
EXAMPLES = sorted(FOLDER.glob("*.json"))
OF_A_JOB = FOLDER / "AI Toolkit training job - replay its samples.json"  # has no sampler
COMPARED = FOLDER / "Compare with a sample - Lumina Image 2.0.json"
KOHYA = "LoRA of sd-scripts - Lumina Image 2.0"
GOLDEN = Path(__file__).parent / "golden"
SMALL = {"width": 64, "height": 64, "steps": 2}
RELEASED = "default"  # weights from the hub
TINY = "tiny"  # what replaces them: that model's tiny checkpoint
# what replaces a user's own file
OWN = {
    "choose your LoRA": "my_lora.safetensors",
    "choose your GGUF file": "transformer-q8_0.gguf",
    "choose your pth file": "consolidated.00-of-01.pth",
}
# how the names of those begin whose weights are files
OF_FILES = ("ComfyUI files", "GGUF file", "All-in-one file", "pth file", KOHYA)
# mean distance from the picture of the unquantised folder, in levels of 255, where the weights are not the same
ROUNDED = {
    "GGUF file - Lumina Image 2.0": 2,
    "GGUF file - Z-Image Turbo": 2,
    "ComfyUI files - FLUX.2-dev": 20,
    "ComfyUI files - Krea 2 Turbo": 20,
    "ComfyUI files - Qwen-Image": 20,
    "ComfyUI files - Qwen-Image-2512": 20,
    "ComfyUI files - Qwen-Image-Edit": 20,
    "ComfyUI files - Qwen-Image-Edit-2509": 20,
    "ComfyUI files - Qwen-Image-Edit-2511": 20,
    "GGUF file - Qwen-Image": 2,
}


@pytest.fixture(scope="module")
def own_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> a models folder with its checkpoint ``tiny``, and with the files that its examples name."""
    folder = tmp_path_factory.mktemp("examples")
    z_images, krea2s, edits = _z_image(folder / "z_image"), _krea2(folder / "krea2"), _qwen_image_edit(folder / "edit")
    return {
        "lumina2": _lumina2(folder / "lumina2", models),
        "flux2": _flux2(folder / "flux2"),
        "flux2_klein_4b": _klein(folder / "klein_4b", "flux-2-klein-base-4b.safetensors"),
        # another width, which is nothing to a tiny one
        "flux2_klein_9b": _klein(folder / "klein_9b", "flux-2-klein-base-9b.safetensors"),
        "omnigen2": _omnigen2(folder / "omnigen2"),
        **dict.fromkeys(("zimage", "zimage:turbo", "zimage:deturbo"), z_images),
        **dict.fromkeys(("qwen_image", "qwen_image:2512"), _qwen_image(folder / "qwen_image")),
        **dict.fromkeys(("qwen_image_edit", "qwen_image_edit_plus"), edits),
        "qwen_image_edit_plus:2511": _qwen_image_edit(folder / "newest", zero_time=True),
        **dict.fromkeys(("krea2", "krea2:turbo", "krea2:o_edit", "krea2:o_edit_turbo"), krea2s),
    }


@pytest.fixture
def tokenizer(own_models: dict[str, Path], hub_cache: Path) -> None:
    """The tokenizers in the hub's cache that Qwen's single files do not have."""
    for model, repository, below in (
        ("qwen_image", "Qwen/Qwen-Image", "tokenizer/"),
        ("krea2", "Qwen/Qwen3-VL-4B-Instruct", ""),
        ("zimage", "Tongyi-MAI/Z-Image-Turbo", "tokenizer/"),
        ("zimage", "Tongyi-MAI/Z-Image", "tokenizer/"),
        ("flux2_klein_4b", "Qwen/Qwen3-4B", ""),
    ):
        own = own_models[model] / "diffusers" / TINY / "tokenizer"
        put_into_cache(hub_cache, repository, {f"{below}{file.name}": file for file in own.iterdir()})
    for model, repository in (
        ("qwen_image_edit", "Qwen/Qwen-Image-Edit"),
        ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509"),
        ("qwen_image_edit_plus:2511", "Qwen/Qwen-Image-Edit-2511"),
    ):
        own = own_models[model] / "diffusers" / TINY / "processor"
        put_into_cache(hub_cache, repository, {f"processor/{file.name}": file for file in own.iterdir()})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the picture that ComfyUI's input folder has from the start."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / PICTURE)
    return folder


def _places(folder: Path, model: str) -> list[Path]:
    """Where transformer, text encoder and VAE lie by the names that ComfyUI's users have."""
    return [folder / one.directory / one.name for one in COMFY_FILES[model]]


def _lumina2(folder: Path, models: Path) -> Path:
    tiny = folder / "diffusers" / TINY
    shutil.copytree(models / "diffusers" / "tiny", tiny)
    write_kohya(folder / "loras" / "my_lora.safetensors", tiny, text_encoder=True)
    transformer, text_encoder, vae = _places(folder, "lumina2")
    containers.write_dit(transformer, tiny)
    containers.write_gemma2(text_encoder, tiny)
    containers.write_ae(vae, tiny)
    containers.write_pth(folder / "diffusion_models" / "consolidated.00-of-01.pth", tiny)
    containers.write_gguf(folder / "unet" / "transformer-q8_0.gguf", tiny, quant="Q8_0")
    containers.write_all_in_one(folder / LUMINA_ALL_IN_ONE.directory / LUMINA_ALL_IN_ONE.name, tiny)
    return folder


def _flux2(folder: Path) -> Path:
    tiny = flux2.make_checkpoint(folder / "diffusers" / TINY)
    flux2.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    transformer, text_encoder, vae = _places(folder, "flux2")
    plain = flux2.write_text_encoder(folder / "plain.safetensors", tiny)
    containers.write_scaled_float8(text_encoder, plain, "old")
    containers.write_scaled_float8(transformer, tiny / flux2.FILES["flux2"], "metadata")
    _copy(tiny / flux2.VAE_FILE, vae)
    return folder


def _klein(folder: Path, name: str) -> Path:
    tiny = flux2.make_checkpoint(folder / "diffusers" / TINY, "flux2_klein_4b")
    flux2.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    transformer, text_encoder, vae = _places(folder, "flux2_klein_4b")
    _copy(tiny / flux2.FILES["flux2_klein_4b"], transformer)
    flux2.write_text_encoder(text_encoder, tiny)
    _copy(tiny / flux2.VAE_FILE, vae)
    (tiny / flux2.FILES["flux2_klein_4b"]).rename(tiny / name)
    return folder


def _omnigen2(folder: Path) -> Path:
    tiny = omnigen2.make_checkpoint(folder / "diffusers" / TINY)
    omnigen2.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    for file, place in zip(omnigen2.write_single_files(folder, tiny), _places(folder, "omnigen2"), strict=True):
        _copy(file, place)
    return folder


def _z_image(folder: Path) -> Path:
    # three heads: every row fills GGUF's blocks
    tiny = z_image.make_checkpoint(folder / "diffusers" / TINY, heads=3)
    z_image.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    z_image.make_lora(folder / "loras" / TRAINING_ADAPTERS["zimage:turbo"].name, tiny, seed=2)
    for model in ("zimage", "zimage:turbo"):
        transformer, text_encoder, vae = _places(folder, model)
        z_image.write_single_transformer(transformer, tiny)
    z_image.write_gguf(folder / "unet" / "transformer-q8_0.gguf", tiny, "Q8_0")
    z_image.write_single_text_encoder(text_encoder, tiny)
    containers.write_ae(vae, tiny)
    return folder


def _qwen_image(folder: Path) -> Path:
    tiny = qwen_image.make_checkpoint(folder / "diffusers" / TINY)
    qwen_image.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    qwen_image.make_lora(folder / "loras" / RECOVERY_ADAPTER.name, tiny, seed=2)
    qwen_image.write_gguf(folder / "unet" / "transformer-q8_0.gguf", tiny, "Q8_0")
    _qwen_image_files(folder, tiny, ("qwen_image", "qwen_image:2512"))
    return folder


def _qwen_image_edit(folder: Path, zero_time: bool = False) -> Path:
    tiny = qwen_image_edit.make_checkpoint(folder / "diffusers" / TINY, zero_time=zero_time)
    qwen_image.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    models = ("qwen_image_edit_plus:2511",) if zero_time else ("qwen_image_edit", "qwen_image_edit_plus")
    _qwen_image_files(folder, tiny, models)
    return folder


def _qwen_image_files(folder: Path, tiny: Path, models: tuple[str, ...]) -> None:
    plain = qwen_image.write_single_transformer(folder / "plain.safetensors", tiny)
    encoder = qwen_image.write_single_text_encoder(folder / "encoder.safetensors", tiny)
    for model in models:
        transformer, text_encoder, vae = _places(folder, model)
        if "fp8" in transformer.name:
            qwen_image.write_float8(transformer, plain)
        else:
            _copy(plain, transformer)
    containers.write_scaled_float8(text_encoder, encoder, "old")
    write_wan_vae(vae, tiny)


def _krea2(folder: Path) -> Path:
    tiny = krea2.make_checkpoint(folder / "diffusers" / TINY)
    krea2.make_lora(folder / "loras" / "my_lora.safetensors", tiny, trigger_word="t1ny")
    krea2.make_lora(folder / "loras" / TRAINING_ADAPTERS["krea2:turbo"].name, tiny, seed=2)
    transformer, text_encoder, vae = _places(folder, "krea2:turbo")
    plain = krea2.write_single_transformer(folder / "plain.safetensors", tiny)
    containers.write_scaled_float8(transformer, plain, "new")
    encoder = krea2.write_single_text_encoder(folder / "encoder.safetensors", tiny)
    containers.write_scaled_float8(text_encoder, encoder, "new")
    write_wan_vae(vae, tiny)
    return folder


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    shutil.copy(file, place)


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path != OF_A_JOB], ids=lambda path: path.stem)
def test_example_runs(host, own_models, pictures, path, tmp_path):
    document = json.loads(path.read_text("utf-8"))
    types = Counter(node["type"] for node in document["nodes"])
    made = _run(path, own_models, tmp_path, pictures)
    report, picture = made.report, made.picture
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 10, "a picture, not one colour"
    assert json.loads(picture.text["workflow"]) == document
    assert json.loads(picture.text["aitk_report"]) == report
    # an adapter is listed as a LoRA, too; the example of a stack has two in it
    adapters = types["AITKTrainingAdapter"] + types["AITKRecoveryAdapter"]
    assert len(report["loras"]) == types["ApplyAITKLoRA"] + adapters + 2 * types["AITKLoRAStack"]
    # what is compared or encoded controls nothing
    controls = types["LoadImage"] if types["AITKControlImages"] else 0
    assert len(report["control_images"]) == controls
    assert not [note for note in report["notes"] if "negative prompt" in note], "a text that does nothing"
    if "AITKRuntimeOptions" in types:
        assert report["model"]["quantization"]["text_encoder"] == "qfloat8"
    if path.stem.startswith(OF_FILES):
        _check_files(document, made, path, own_models, tmp_path / "folder", pictures)


def _check_files(document: dict, made: Made, path: Path, models: dict[str, Path], output: Path, pictures: Path) -> None:
    """The report names the files that the example names, and their picture is that of the folder."""
    (loader,) = [node for node in document["nodes"] if node["type"] == "LoadAITKModel"]
    _, weights, *_, text_encoder, vae = loader["widgets_values"]
    weights = OWN.get(weights, weights)
    whole = text_encoder == RELEASED
    parts = {"transformer": weights, "text_encoder": text_encoder, "vae": vae}
    assert made.report["model"]["weights"] == (weights if whole else parts)
    # what the editor offers to download is what the widgets name
    offered = [one["name"] for one in loader["properties"]["models"]]
    assert offered == [name for name in loader["widgets_values"] if str(name).endswith(".safetensors")]
    if path.stem == KOHYA:
        assert made.report["recipe"] == "sd-scripts"
        assert made.report["guidance"]["while_model_time_below"] == 0.25
        assert [lora["arithmetic"] for lora in made.report["loras"]] == ["live, sd-scripts"]
        return
    # the values of the folder by another way; blocks of 8 bits are near them
    folder = (f"LoadAITKModel.weights={TINY}", "LoadAITKModel.text_encoder=default", "LoadAITKModel.vae=default")
    expected = _run(path, models, output, pictures, folder).picture
    distance = np.abs(np.asarray(made.picture).astype(int) - np.asarray(expected)).mean()
    assert 0 < distance < ROUNDED[path.stem] if path.stem in ROUNDED else distance == 0


@dataclass(frozen=True)
class Made:
    """What a run gave: the first sampler's report, and the last of its pictures."""

    report: dict
    picture: Image.Image
    name: str


def _run(
    path: Path, models: dict[str, Path], output: Path, pictures: Path | None = None, sets: tuple[str, ...] = ()
) -> Made:
    """Runs an example at a small size; replaced are weights from the hub, the user's own files, and ``sets``."""
    document = json.loads(path.read_text("utf-8"))
    loaders = [node for node in document["nodes"] if node["type"] == "LoadAITKModel"]
    model = loaders[0]["widgets_values"][0]
    if loaders[0]["widgets_values"][1] == RELEASED:
        sets = (f"LoadAITKModel.weights={TINY}", *sets)
    arguments = [str(path), "--models", str(models[model]), "--output", str(output)]
    arguments += ["--report", str(output / "r.json"), *(["--input", str(pictures)] if pictures else [])]
    samplers = [node["id"] for node in document["nodes"] if node["type"] == "AITKSampler"]
    small = [f"{sampler}.{name}={value}" for sampler in samplers for name, value in SMALL.items()]
    for value in (*small, *_own(document), *sets):
        arguments += ["--set", value]
    assert run_command([*arguments, "--device", "cpu"]) == 0
    made = json.loads((output / "r.json").read_text())
    report, name = next(iter(made["reports"].values())), made["images"][-1]
    return Made(report, Image.open(output / name), name)


def _own(document: dict) -> Iterator[str]:
    """The user's own files in place of the words that ask for them."""
    for node in document["nodes"]:
        inputs = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        for name, value in zip(inputs, node.get("widgets_values", ()), strict=False):
            if isinstance(value, str) and value in OWN:
                yield f"{node['id']}.{name}={OWN[value]}"


def test_the_example_of_a_job_gives_the_trainer_s_picture(host, tmp_path):
    shutil.copytree(GOLDEN / "lumina2" / "base", tmp_path / "models" / "diffusers" / TINY)
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", tmp_path / "jobs" / "my_job")
    output = tmp_path / "made"
    arguments = ["--models", str(tmp_path / "models"), "--input", str(tmp_path / "jobs"), "--output", str(output)]
    for value in (
        "AITKTrainingJob.job=my_job",
        f"AITKTrainingJob.weights={TINY}",
        "AITKReplayPreviews.checkpoints=250",
    ):
        arguments += ["--set", value]
    assert run_command([str(OF_A_JOB), *arguments, "--device", "cpu"]) == 0
    (made,) = output.glob("aitk_*.png")
    (preview,) = (tmp_path / "jobs" / "my_job" / "samples").glob("*__000000250_0.png")
    difference = np.abs(np.asarray(Image.open(made)).astype(int) - np.asarray(Image.open(preview)))
    # other kernels change 1 level on less than 1 % of the values
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_comparison_says_what_it_found(host, own_models, pictures, tmp_path, capfd):
    _run(COMPARED, own_models, tmp_path / "noise", pictures)
    assert "Different: at most" in capfd.readouterr().err
    # our own picture takes the trainer's place
    made = _run(COMPARED, own_models, tmp_path / "ours", pictures)
    _run(COMPARED, own_models, tmp_path / "again", tmp_path / "ours", (f"LoadImage.image={made.name}",))
    assert "Identical pixels." in capfd.readouterr().err


def test_every_node_is_in_an_example():
    types = {node["type"] for path in EXAMPLES for node in json.loads(path.read_text("utf-8"))["nodes"]}
    assert types >= NODE_CLASS_MAPPINGS.keys()
