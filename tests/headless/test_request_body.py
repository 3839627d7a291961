"""Bodies of ai-toolkit-inference's server: read as it reads them, and the pixels of the same values on the nodes."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.request.body import read_body
from comfyui_aitk.headless.request.command import request_command
from comfyui_aitk.headless.tiny import flux2, krea2, lumina2, omnigen2, qwen_image, qwen_image_edit, z_image
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.models import catalogue, find_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rendering import noise_image, render

pytestmark = pytest.mark.usefixtures("kept_engine")

COMMAND_LINE = Path(__file__).parents[2] / "docs" / "command-line.md"
LORA = "my_lora_job/my_lora.safetensors"
SERVER_MODELS = {facts.id.replace(":", "_"): facts.id for facts in catalogue().values()}
# model -> what makes its tiny checkpoint and its LoRA
TINY = {
    "lumina2": (lumina2.make_checkpoint, lumina2.make_lora),
    "flux2": (flux2.make_checkpoint, flux2.make_lora),
    "flux2_klein_4b": (lambda folder: flux2.make_checkpoint(folder, "flux2_klein_4b"), flux2.make_lora),
    "flux2_klein_9b": (lambda folder: flux2.make_checkpoint(folder, "flux2_klein_9b"), flux2.make_lora),
    "omnigen2": (omnigen2.make_checkpoint, omnigen2.make_lora),
    **dict.fromkeys(
        ("krea2", "krea2:turbo", "krea2:o_edit", "krea2:o_edit_turbo"), (krea2.make_checkpoint, krea2.make_lora)
    ),
    **dict.fromkeys(("qwen_image", "qwen_image:2512"), (qwen_image.make_checkpoint, qwen_image.make_lora)),
    **dict.fromkeys(
        ("qwen_image_edit", "qwen_image_edit_plus"), (qwen_image_edit.make_checkpoint, qwen_image.make_lora)
    ),
    "qwen_image_edit_plus:2511": (
        lambda folder: qwen_image_edit.make_checkpoint(folder, zero_time=True),
        qwen_image.make_lora,
    ),
    **dict.fromkeys(("zimage", "zimage:turbo", "zimage:deturbo"), (z_image.make_checkpoint, z_image.make_lora)),
}


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> a models folder with its checkpoint and ``my_lora_job/my_lora.safetensors``. Read only."""
    made: dict[tuple, Path] = {}
    for checkpoint, lora in TINY.values():
        if (checkpoint, lora) not in made:
            folder = tmp_path_factory.mktemp("models")
            lora(folder / "loras" / LORA, checkpoint(folder / "diffusers" / "tiny"))
            made[checkpoint, lora] = folder
    return {model: made[makers] for model, makers in TINY.items()}


def body(model: str = "lumina2", **prompt: object) -> dict:
    """The minimal request of a model's page, at a small size."""
    usual = {
        "prompt": "[trigger] a photo of a person", "width": 64, "height": 64, "seed": 42, "sample_steps": 2,
        "guidance_scale": 4.0, "neg": "",
    }  # fmt: skip
    loras = [{"path": LORA, "network_multiplier": 1.0}]
    return {"model": model, "trigger_word": "sks", "prompts": [usual | prompt], "loras": loras}


def write(folder: Path, content: dict) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "request.json"
    path.write_text(json.dumps(content))
    return path


def rendered(content: dict | Path, models: Path, tmp_path: Path, capsys) -> list[np.ndarray]:
    """The pictures that the command prints, in its order."""
    path = content if isinstance(content, Path) else write(tmp_path / "asked", content)
    output = tmp_path / "pictures"
    arguments = [str(path), "--models", str(models), "--output", str(output), "--device", "cpu"]
    capsys.readouterr()
    assert request_command(arguments) == 0, capsys.readouterr().err
    return [np.asarray(Image.open(line)) for line in capsys.readouterr().out.splitlines()]


def refused(arguments: list[str], capsys) -> str:
    assert request_command(arguments) == 1
    return capsys.readouterr().err


def png(pixels: np.ndarray) -> bytes:
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, "PNG")
    return raw.getvalue()


def levels(images) -> np.ndarray:
    return (images[0] * 255).round().byte().numpy()


@pytest.mark.parametrize("server_model", SERVER_MODELS)
def test_the_minimal_request_of_a_page_is_the_nodes_picture(host, model_folders, server_model, tmp_path, capsys):
    model = SERVER_MODELS[server_model]
    models = model_folders[model]
    control = noise_image(64, 64, 1)
    encoded = base64.b64encode(png((control[0] * 255).round().byte().numpy())).decode()
    # what every recipe of a model takes, its requests have
    edits = all(recipe.control_images for recipe in find_model(model).recipes.values())
    own = {"ctrl_img": f"data:image/png;base64,{encoded}"} if edits else {}
    (picture,) = rendered(body(server_model, **own), models, tmp_path, capsys)
    use_host(PlainHost(models, host.input, host.output, "cpu"))
    expected = render(
        {"model": model, "weights": "tiny", "dtype": "auto"},
        lora={"lora_name": LORA, "strength": 1.0},
        control=[control] if edits else None,
        recipe="reference pipeline",
        prompt="sks a photo of a person",
        width=64,
        height=64,
        seed=42,
    )
    np.testing.assert_array_equal(picture, levels(expected[0]))
    assert picture.std() > 10, "a picture, not one colour"


def test_a_picture_for_each_prompt_in_their_order(host, model_folders, tmp_path, capsys):
    content = body() | {"loras": [{"path": LORA, "network_multiplier": -0.5}]}
    content["prompts"] = [{**content["prompts"][0], "prompt": text, "seed": None} for text in ("a fox", "a hare")]
    pictures = rendered(content, model_folders["lumina2"], tmp_path, capsys)
    use_host(PlainHost(model_folders["lumina2"], host.input, host.output, "cpu"))
    for picture, text, seed in zip(pictures, ("a fox", "a hare"), (42, 43), strict=True):
        expected = render(
            {"model": "lumina2", "weights": "tiny", "dtype": "auto"},
            lora={"lora_name": LORA, "strength": -0.5},
            recipe="reference pipeline",
            prompt=text,
            height=64,
            seed=seed,
        )
        np.testing.assert_array_equal(picture, levels(expected[0]))


def test_a_report_says_what_was_rendered(model_folders, tmp_path, capsys):
    models, output, report = model_folders["lumina2"], tmp_path / "pictures", tmp_path / "new" / "report.json"
    content = body(fps=16)
    content["prompts"] = [{**content["prompts"][0], "prompt": text, "seed": -1} for text in ("a fox", "a hare")]
    arguments = [str(write(tmp_path / "asked", content)), "--models", str(models), "--report", str(report)]
    assert request_command([*arguments, "--output", str(output), "--device", "cpu"]) == 0
    written = json.loads(report.read_text())
    assert [str(output / image) for image in written["images"]] == capsys.readouterr().out.splitlines()
    assert written["seconds"] > 0
    first, second = written["reports"].values()
    assert (first["recipe"], first["prompt"], second["prompt"]) == ("reference pipeline", "a fox", "a hare")
    drawn = [note for note in written["notes"] if "was drawn" in note]
    for note, sampled in zip(drawn, (first, second), strict=True):
        assert str(sampled["seed"]) in note
    assert any("fps is not used" in note for note in written["notes"])
    assert "report 'pictures' is a folder" in refused([*arguments[:-1], str(output), "--output", str(output)], capsys)


def test_a_workflow_that_would_not_run_is_not_written(model_folders, tmp_path, capsys):
    path, workflow = write(tmp_path / "asked", body()), tmp_path / "workflow.json"
    arguments = [str(path), "--models", str(model_folders["lumina2"]), "--workflow", str(workflow)]
    assert "'nowhere'" in refused([*arguments, "--weights", "nowhere"], capsys)
    assert not workflow.exists()
    workflow.mkdir()
    assert "--workflow 'workflow.json' is a folder. Name a file." in refused(arguments, capsys)


def test_the_example_in_the_documents_is_a_request():
    (text,) = re.findall(r"```json\n(.*?)```", COMMAND_LINE.read_text("utf-8"), re.DOTALL)
    found = read_body(json.loads(text), lambda: 0)
    assert not found.notes
    assert "[trigger]" not in found.pictures[0].prompt


def test_defaults_and_seeds_are_the_server_s():
    content = body("zimage_turbo")
    content["prompts"] = [
        {"prompt": "[trigger] and [name]"},
        {"prompt": "[trigger]", "trigger_word": "fox", "seed": None},
        {"prompt": "c", "seed": -1, "sample_steps": 4.0},
    ]
    first, second, third = (found := read_body(content, lambda: 7)).pictures
    assert (first.width, first.height, first.steps, first.guidance_scale) == (1024, 1024, 8, 1.0)
    assert (first.prompt, second.prompt) == ("sks and [name]", "fox")
    assert [picture.seed for picture in found.pictures] == [42, 43, 7]
    assert third.steps == 4
    assert found.notes == ("prompts[2].seed is -1: 7 was drawn",)
    del content["trigger_word"], content["loras"][0]["network_multiplier"]
    found = read_body(content, lambda: 7)
    assert found.pictures[0].prompt == "[trigger] and [name]"
    assert found.loras[0].strength == 1.0


def test_what_a_model_reads_as_an_option_of_its_recipe_is_one():
    found = read_body(body("krea2_o_edit") | {"kv_cache": False, "match_target_res": None}, lambda: 0)
    assert found.recipe_options["kv_cache"] is False
    assert "match_target_res" not in found.recipe_options
    assert not any("kv_cache" in note for note in found.notes)
    assert not read_body(body("krea2_o_edit"), lambda: 0).recipe_options
    assert not read_body(body("krea2") | {"kv_cache": False}, lambda: 0).recipe_options
    with pytest.raises(InputError, match=r"kv_cache is 'no'\. Write true or false"):
        read_body(body("krea2_o_edit") | {"kv_cache": "no"}, lambda: 0)


def test_what_means_nothing_here_is_named():
    content = body(sampler="euler", fps=16, num_frames=1, ctrl_img="https://example.com/a.png", resolution="Default")
    found = read_body(content | {"hf_token": "secret", "kv_cache": True}, lambda: 0)
    named = [note.partition(" ")[0] for note in found.notes]
    assert named == ["hf_token", "kv_cache", *(f"prompts[0].{n}" for n in ("sampler", "num_frames", "fps", "ctrl_img"))]
    assert "secret" not in " ".join(found.notes)
    assert not found.pictures[0].control_images
    edit = read_body(body("omnigen2", ctrl_img="a.png", ctrl_img_2="b.png", ctrl_img_1="c.png"), lambda: 0)
    assert list(edit.pictures[0].control_images.values()) == ["c.png", "b.png"]
    assert "ctrl_img is not used" in edit.notes[0]


REFUSED = {
    "another model": ({"model": "sdxl"}, "model is 'sdxl', which this pack does not have. It has: lumina2, "),
    "no model": ({"model": None}, "model is missing"),
    "no prompts": ({"prompts": []}, "prompts is no list of objects, or an empty one"),
    "no LoRA": ({"loras": []}, "loras is no list of objects, or an empty one"),
    "two LoRAs": ({"loras": [{"path": "a"}, {"path": "b"}]}, "loras holds 2 LoRAs"),
    "half a LoRA": ({"loras": [{"path": "a", "transformer": "low"}]}, "loras[0].transformer is for models with two"),
    "no path": ({"loras": [{"path": ""}]}, "loras[0].path is missing"),
    "much LoRA": ({"loras": [{"path": "a", "network_multiplier": 3}]}, "network_multiplier is 3: the server takes -2"),
    "unknown fields": (
        {"trigger": "x", "prompts": [{"prompt": "a", "steps": 4, "sample_step": 3}]},
        "unknown fields: trigger (is it trigger_word?), prompts[0].steps, prompts[0].sample_step (is it sample_steps?)",
    ),
    "no prompt": ({"prompts": [{"width": 64}]}, "prompts[0].prompt is missing"),
    "a number": ({"prompts": [{"prompt": 3}]}, "prompts[0].prompt is 3: it must be a text"),
    "half a step": ({"prompts": [{"prompt": "a", "sample_steps": 2.5}]}, "sample_steps is 2.5: the server takes whole"),
    "a small side": ({"prompts": [{"prompt": "a", "height": 63}]}, "prompts[0].height is 63: the server takes 64"),
    "a text": ({"prompts": [{"prompt": "a", "width": "64"}]}, "width is '64': the server takes"),
    "NaN": ({"prompts": [{"prompt": "a", "guidance_scale": float("nan")}]}, "guidance_scale is nan"),
    "a seed": ({"prompts": [{"prompt": "a", "seed": 2**64}]}, "seed is 18446744073709551616"),
    "twice the size": ({"prompts": [{"prompt": "a", "resolution": "High"}]}, "resolution is 'High'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_body_is_refused_by_the_field_s_name(case):
    change, message = REFUSED[case]
    with pytest.raises(InputError) as error:
        read_body(body() | change, lambda: 0)
    assert message in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(
    st.sampled_from(["prompt", "width", "seed", "sample_steps", "guidance_scale", "neg", "ctrl_img", "fps"]), JSON
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": JSON | st.sampled_from([*SERVER_MODELS]),
            "trigger_word": JSON,
            "prompts": JSON | st.lists(FIELDS, max_size=2),
            "loras": JSON | st.just([{"path": "a"}]),
        },
    )
)
def test_any_body_is_rendered_as_it_says_or_refused(content):
    try:
        found = read_body(content, lambda: 0)
    except InputError as error:
        assert len(str(error)) < 1500
        return
    assert found.model == SERVER_MODELS[content["model"]]
    for index, (prompt, picture) in enumerate(zip(content["prompts"], found.pictures, strict=True)):
        seed = prompt.get("seed")
        assert picture.seed == (42 + index if seed is None else 0 if seed == -1 else seed)
        assert 64 <= picture.width <= 4096 and 1 <= picture.steps <= 150 and 0 <= picture.guidance_scale <= 20
        assert picture.negative_prompt == (prompt.get("neg") or "")


def test_a_workflow_and_its_control_images_are_the_request(host, model_folders, tmp_path, capsys):
    models = model_folders["omnigen2"]
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns it, and the server does not
    (tmp_path / "asked").mkdir()
    Image.fromarray(noise).save(tmp_path / "asked" / "first.png", exif=turned)
    encoded = base64.b64encode(png(noise[::-1])).decode()
    content = body("omnigen2", ctrl_img_1="first.png", ctrl_img_2=f"data:image/png;base64,{encoded}")
    path, workflow = write(tmp_path / "asked", content), tmp_path / "written" / "workflow.json"
    alone = ["--models", str(models), "--workflow", str(workflow)]
    assert request_command([str(path), *alone]) == 0
    assert "copy the pictures in 'control_images'" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists(), "without --output nothing is rendered"

    staged = workflow.parent / "control_images"
    nodes = json.loads(workflow.read_text()).values()
    loaded = [node["inputs"]["image"] for node in nodes if node["class_type"] == "LoadImage"]
    for name, expected in zip(loaded, (noise, noise[::-1]), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(staged / name)), expected)

    (picture,) = rendered(path, models, tmp_path, capsys)
    again = tmp_path / "again"
    arguments = [str(workflow), "--models", str(models), "--input", str(staged), "--output", str(again)]
    assert run_command([*arguments, "--device", "cpu"]) == 0
    (saved,) = again.glob("output_0*.png")
    np.testing.assert_array_equal(picture, np.asarray(Image.open(saved)))
    (plain,) = rendered(body("omnigen2"), models, tmp_path, capsys)
    assert (plain != picture).any()


# a PNG that ends in the midst of its pixels
CUT_OFF = base64.b64encode(png(np.zeros((64, 64, 3), np.uint8))[:60]).decode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.com/a.png", "prompts[0].ctrl_img is an address, and nothing is downloaded. Download it"),
        ("/home/somebody/a.png", "leads out of the folders of this run. Put 'a.png' below --models or beside"),
        ("../a.png", "leads out of the folders"),
        ("a.png", "prompts[0].ctrl_img 'a.png' is not there. Put it beside the request"),
        ("request.json", "cannot be read: it is damaged, or no picture"),
        ("AAAA", "cannot be read: it is damaged, or no picture"),
        (CUT_OFF, "cannot be read: it is damaged, or no picture"),
        ("A", "is neither a picture's file name nor base64"),
    ],
)
def test_a_control_image_is_refused_by_the_field_s_name(model_folders, value, message, tmp_path, capsys):
    path = write(tmp_path / "asked", body("omnigen2", ctrl_img=value))
    said = refused([str(path), "--models", str(model_folders["omnigen2"]), "--output", str(tmp_path / "out")], capsys)
    assert message in said
    assert str(tmp_path) not in said
    assert "somebody" not in said


def test_a_lora_beside_the_request_is_found(host, model_folders, tmp_path, capsys):
    models = model_folders["lumina2"]
    bare = tmp_path / "bare"
    shutil.copytree(models / "diffusers", bare / "diffusers")
    path = write(tmp_path / "asked", body())
    arguments = [str(path), "--models", str(bare), "--output", str(tmp_path / "out")]
    assert f"loras[0].path '{LORA}' is not there. Put it into the folder 'loras'" in refused(arguments, capsys)
    (path.parent / LORA).parent.mkdir()
    shutil.copy(models / "loras" / LORA, path.parent / LORA)
    (beside,) = rendered(path, bare, tmp_path, capsys)
    (below,) = rendered(body(), models, tmp_path, capsys)
    np.testing.assert_array_equal(beside, below)
    # a workflow would take this one
    (bare / "loras").mkdir()
    shutil.copy(models / "loras" / LORA, bare / "loras")
    assert "has another 'my_lora.safetensors'. Rename one" in refused(arguments, capsys)


@pytest.mark.parametrize("name", ["../my_lora.safetensors", "/my_lora.safetensors", "C:\\my_lora.safetensors"])
def test_a_lora_elsewhere_is_refused(model_folders, name, tmp_path, capsys):
    content = body() | {"loras": [{"path": name}]}
    path = write(tmp_path / "asked", content)
    said = refused([str(path), "--models", str(model_folders["lumina2"]), "--output", str(tmp_path)], capsys)
    assert "loras[0].path leads out of the folders of this run. Put 'my_lora.safetensors'" in said


def test_models_of_one_class_are_told_apart_by_their_folders(model_folders, tmp_path, capsys):
    tiny = model_folders["zimage"]
    (tmp_path / "models" / "diffusers").mkdir(parents=True)
    (tmp_path / "models" / "loras").symlink_to(tiny / "loras")

    def weights(model: str, *flags: str) -> str:
        path, workflow = write(tmp_path / "asked", body(model)), tmp_path / "w.json"
        arguments = [str(path), "--models", str(tmp_path / "models"), "--workflow", str(workflow), *flags]
        if request_command(arguments):
            return capsys.readouterr().err
        return json.loads(workflow.read_text())["1"]["inputs"]["weights"]

    assert weights("zimage_turbo") == "default"
    for name in ("Z-Image", "mine", "yours"):
        (tmp_path / "models" / "diffusers" / name).symlink_to(tiny / "diffusers" / "tiny")
    assert weights("zimage") == "Z-Image"
    assert "several folders of Z-Image Turbo: 'mine', 'yours'. Choose one with --weights" in weights("zimage_turbo")
    assert weights("zimage_turbo", "--weights", "yours") == "yours"
