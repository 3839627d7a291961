"""What people really wire to the nodes, type into them and show of them: each with what must come of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host.comfyui import ComfyHost
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import ControlImages, LoraSpec, PipelineHandle

SAMPLER = NODE_CLASS_MAPPINGS["AITKSampler"]
INPUTS = {
    "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 1, "guidance_scale": 4.0, "seed": 3,
    "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "", "batch_size": 1,
}  # fmt: skip
LARGEST_SEED = 2**64 - 1


@pytest.fixture
def run(host):
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "float32")

    def run(**inputs: object) -> dict:
        values = SAMPLER().sample(**INPUTS | {"pipeline": pipeline} | inputs)["result"]
        return dict(zip(SAMPLER.RETURN_NAMES, values, strict=True))

    return run


def _noted(out: dict) -> list[str]:
    return json.loads(out["report"])["notes"]


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63, LARGEST_SEED])
def test_a_seed_beyond_the_widget_s_draws_torch_s_noise(run, checkpoint, seed):
    from comfyui_aitk.pipelines.models import find_model, load_model

    out = run(seed=seed, steps=1)
    model = load_model(find_model("lumina2"))
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    # one more digit than a JavaScript number holds makes another picture
    assert not torch.equal(out["image"], run(seed=seed - 1)["image"])
    assert json.loads(out["report"])["seed"] == seed
    given = {"samples": model.to_comfy(noise, checkpoint)}
    assert torch.equal(out["image"], run(seed=seed, latent=given)["image"])


def test_the_widget_keeps_the_editor_s_limit_and_the_api_has_the_generator_s(host):
    assert SAMPLER.INPUT_TYPES()["required"]["seed"][1]["max"] == 2**53
    assert SAMPLER.VALIDATE_INPUTS(seed=LARGEST_SEED) is True
    assert SAMPLER.VALIDATE_INPUTS(seed=None) is True
    for wrong in (-1, LARGEST_SEED + 1, 10**5000, True, 1.5, "1"):
        assert "choose 0 to 2^64 - 1" in SAMPLER.VALIDATE_INPUTS(seed=wrong)


def test_the_last_seed_of_a_batch_is_one_too(run):
    assert run(seed=LARGEST_SEED - 1, batch_size=2)["image"].shape[0] == 2
    with pytest.raises(AITKError, match="the last of 2 pictures would need one above"):
        run(seed=LARGEST_SEED, batch_size=2)


def test_the_editor_leaves_prompts_alone(host):
    for name in ("prompt", "negative_prompt", "system_prompt"):
        assert SAMPLER.INPUT_TYPES()["required"][name][1]["dynamicPrompts"] is False, name


@pytest.mark.parametrize(
    ("inputs", "note"),
    [
        ({"prompt": "[trigger]"}, "[trigger] stays in the prompt as it is: trigger_word is empty"),
        ({"prompt": "[name], a cat"}, "[name] stays in the prompt as it is: trigger_word is empty"),
        ({"prompt": "[name] [trigger]", "trigger_word": " \n"}, "[trigger] and [name] stay in the prompt as they are"),
        (
            {"negative_prompt": "[trigger]", "trigger_word": "fox"},
            "[trigger] stays in the negative prompt as it is: trigger_word goes into the prompt alone",
        ),
    ],
)
def test_a_trigger_that_stays_is_said(run, capsys, inputs, note):
    assert any(note in line for line in _noted(run(**inputs, unique_id="9")))
    assert f"node 9: {note}" in capsys.readouterr().err
    assert not any("stay" in line for line in _noted(run(prompt="[trigger]", trigger_word="fox")))


HOSTILE = '<img src=x onerror="alert(1)"> \x1b[2J'


def test_a_node_s_text_is_text_to_the_page(run, monkeypatch, capsys):
    sent = []
    server = SimpleNamespace(client_id="page", send_progress_text=lambda *values: sent.append(values))
    module = ModuleType("server")
    vars(module).update(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    (note,) = _noted(run(recipe="trainer preview", prompt=f"a fox --n {HOSTILE}", unique_id="7"))
    assert "\x1b" not in capsys.readouterr().err
    ComfyHost().show_text("7", note)
    ComfyHost().show_text("7", f"loading {HOSTILE}.safetensors" + "x" * 10**6)
    for text, *_ in sent:
        assert "&lt;img" in text
        assert not set("<>\x1b") & set(text)
        assert len(text) < 10_000


def test_a_handle_s_words_are_short_and_hold_no_path(checkpoint, tmp_path):
    path = tmp_path / "home" / "someone" / "style.safetensors"
    handle = PipelineHandle("lumina2", checkpoint)
    spec = LoraSpec("style.safetensors", FileStamp(path, 1, 1, 1), 0.5)
    for value in (handle, handle.with_lora(spec), replace(handle, loras=(spec,) * 50), spec):
        for text in (str(value), repr(value), f"{value}"):
            assert len(text) < 300
            assert "/" not in text
    assert "style.safetensors at 0.5" in str(handle.with_lora(spec))
    assert str(ControlImages((torch.zeros(1, 3, 4, 3),))) == "AITK control images: 4 x 3"


@pytest.mark.parametrize("wrong", [None, 5, [1, 2], b"x", {"a": 1}, 1.5, True], ids=str)
@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("guidance_scale",)])
def test_a_value_of_another_kind_is_named(run, name, wrong):
    """ComfyUI converts a widget's value, and hands on what comes over a wire as it is."""
    whole = name in ("width", "height", "steps", "seed", "batch_size")
    if whole and wrong == 5 and wrong is not True:
        return
    with pytest.raises(AITKError, match=name) as caught:
        run(**{name: wrong})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["model", "weights", "dtype", "repo_id", "text_encoder", "vae"])
@pytest.mark.parametrize("wrong", [None, 5, ["x"], {}], ids=str)
def test_a_loader_s_value_of_another_kind_is_named(host, name, wrong):
    values = {"model": "lumina2", "weights": "tiny", "dtype": "auto", name: wrong}
    with pytest.raises(AITKError, match=name) as caught:
        NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(**values)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "repo_id", ["owner/a--b", "owner/name.git", "owner/naïve", "owner/a..b", "o/-x", "owner/a.", "x" * 9**5]
)
def test_a_repository_s_name_that_the_hub_would_not_take_is_refused(host, repo_id):
    with pytest.raises(AITKError, match="is no Hugging Face repository id") as caught:
        NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "default", "auto", repo_id)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("wrong", [None, "x", [1], {}, True, float("nan"), 10**400], ids=lambda value: str(value)[:9])
def test_a_number_of_another_kind_is_named(host, models, wrong):
    nodes = NODE_CLASS_MAPPINGS
    (pipeline,) = nodes["LoadAITKModel"]().load("lumina2", "tiny", "auto")
    for name, make in {
        "strength": lambda: nodes["ApplyAITKLoRA"]().apply(pipeline, "tiny.safetensors", wrong),
        "blocks_on_cpu": lambda: nodes["AITKRuntimeOptions"]().make("none", "none", blocks_on_cpu=wrong),
        "renorm_cfg": lambda: nodes["AITKRecipeOptions"]().make(renorm_cfg=wrong),
        "transformer_quantization": lambda: nodes["AITKRuntimeOptions"]().make(wrong, "none"),
        "application": lambda: nodes["ApplyAITKLoRA"]().apply(pipeline, "tiny.safetensors", 1.0, wrong),
    }.items():
        with pytest.raises(AITKError, match=name) as caught:
            make()
        assert len(str(caught.value)) < 300


GREY = torch.linspace(0, 1, 64 * 80).reshape(1, 64, 80, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_s_colours_are_taken_as_pillow_converts_them(host, channels):
    import numpy as np
    from PIL import Image

    pixels = torch.randint(0, 256, (64, 80, channels), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(pixels.squeeze(-1).numpy(), ["", "L", "LA", "RGB", "RGBA"][channels])
    expected = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
    (control,) = NODE_CLASS_MAPPINGS["AITKControlImages"]().collect(image_2=pixels[None].float() / 255)
    assert torch.equal((control.images[0][0] * 255).round().to(torch.uint8), expected)
    assert control.notes == (
        ("the transparency of image_2 is left out, as AI Toolkit does: colours are taken as they are stored",)
        if channels in (2, 4)
        else ()
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 8, 8), "image_1 is no picture: its values have the shape"),
        (torch.zeros(2, 8, 8, 3), "image_1 holds 2 pictures. Connect one picture to each input"),
        (torch.zeros(0, 8, 8, 3), "image_1 holds 0 pictures"),
        (torch.zeros(1, 0, 8, 3), "image_1 is 8 x 0 pixels"),
        (torch.zeros(1, 8, 8, 5), "image_1 is no picture"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "image_1 is no picture"),
        (torch.full((1, 8, 8, 3), torch.nan), "image_1 holds NaN or Inf"),
        ({"samples": 1}, "image_1 is a value of type dict, no IMAGE"),
        ([1], "image_1 is a value of type list, no IMAGE"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_no_control_image_is_named(host, image, words):
    with pytest.raises(AITKError, match=words):
        NODE_CLASS_MAPPINGS["AITKControlImages"]().collect(image_1=image)


@pytest.mark.parametrize(
    "latent",
    [
        {"samples": torch.zeros(1, 4, 16, 8), "downscale_ratio_spacial": 8},
        {"samples": torch.zeros(1, 4, 16, 8)},
        {"samples": torch.zeros(1, 16, 16, 8)},
        {"samples": torch.zeros(1, 128, 8, 4), "downscale_ratio_spacial": 16},
        {"samples": torch.zeros(1, 128, 8, 4)},
        {"samples": torch.zeros(1, 16, 1, 16, 8)},
    ],
    ids=lambda latent: f"{list(latent['samples'].shape)}",
)
def test_an_empty_latent_gives_its_size(run, latent):
    out = run(latent=latent, width=512, height=512)
    assert (out["width"], out["height"]) == (64, 128)
    assert torch.equal(out["image"], run(width=64, height=128)["image"])
    assert json.loads(out["report"])["latent_sha256"] is None


def test_an_empty_latent_of_a_size_that_the_recipe_snaps(run):
    out = run(latent={"samples": torch.zeros(1, 4, 9, 8)})
    assert (out["width"], out["height"]) == (64, 64)
    assert _noted(out) == ["rendered at 64 x 64 (asked for: 64 x 72)"]


def test_an_empty_latent_below_denoise_1_starts_from_emptiness(run):
    own = run(latent={"samples": torch.zeros(1, 16, 8, 8)}, denoise=0.5)
    assert torch.equal(run(latent={"samples": torch.zeros(1, 4, 8, 8)}, denoise=0.5)["image"], own["image"])


def test_a_batch_of_latents_sets_the_batch(run):
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    both = run(latent={"samples": latents}, denoise=0.5)
    assert both["image"].shape[0] == 2
    for index in range(2):
        one = run(latent={"samples": latents[index : index + 1]}, denoise=0.5, seed=INPUTS["seed"] + index)
        assert torch.equal(both["image"][index], one["image"][0])
    assert run(latent={"samples": torch.zeros(3, 4, 8, 8)})["image"].shape[0] == 3


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({"samples": torch.ones(1, 4, 8, 8)}, "Encode the picture with this model's VAE"),
        ({"samples": None}, "latent is empty"),
        ({"samples": 5}, "The latent is no picture's: its samples are 5"),
        ({"samples": torch.zeros(3, 3)}, "The latent is no picture's"),
        ({"samples": torch.zeros(0, 4, 8, 8)}, "it holds no picture"),
        ({"samples": torch.full((1, 16, 8, 8), torch.nan)}, "The latent holds NaN or Inf"),
        ({"samples": torch.zeros(5000, 4, 8, 8)}, "batch_size is 5000: choose 1 to 4096"),
        ({"samples": torch.zeros(1, 16, 4, 8, 8)}, "The latent has shape"),
        ({"samples": torch.zeros(1, 4, 8, 9000)}, "width is 72,000: this model renders at most"),
    ],
    ids=str,
)
def test_a_latent_that_cannot_be_used_is_named(run, latent, words):
    with pytest.raises(AITKError, match=words):
        run(latent=latent)


@pytest.fixture(scope="module")
def every_model(tmp_path_factory) -> Path:
    """A models folder with a checkpoint of each model, called like it."""
    from comfyui_aitk.headless.tiny import flux2, lumina2, omnigen2, z_image

    folder = tmp_path_factory.mktemp("every")
    lumina2.make_checkpoint(folder / "diffusers" / "lumina2")
    omnigen2.make_checkpoint(folder / "diffusers" / "omnigen2")
    z_image.make_checkpoint(folder / "diffusers" / "zimage")
    for model in ("flux2", "flux2_klein_4b"):
        flux2.make_checkpoint(folder / "diffusers" / model, model)
    return folder


@pytest.mark.parametrize("held", ["lumina2", "omnigen2", "zimage", "flux2", "flux2_klein_4b"])
def test_a_folder_of_another_model_says_which_model_to_set(host, every_model, hub_cache, held):
    from comfyui_aitk.nodes.host import PlainHost, use_host
    from comfyui_aitk.pipelines.models import catalogue

    use_host(PlainHost(every_model, host.input, host.output, "cpu"))
    load = NODE_CLASS_MAPPINGS["LoadAITKModel"]()
    (handle,) = load.load(held, held, "auto")
    assert handle.model == held
    others = {
        model for model, facts in catalogue().items() if facts.files.main_class != catalogue()[held].files.main_class
    }
    assert len(others) > 2
    for model in others:
        with pytest.raises(AITKError, match=f"(?i)set model to .*{held}") as caught:
            load.load(model, held, "auto")
        assert str(every_model) not in str(caught.value)


def test_a_locked_folder_is_named_without_its_path(host, monkeypatch):
    is_file = Path.is_file

    def locked(self: Path) -> bool:
        if "tiny" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", locked)
    with pytest.raises(AITKError, match="'tiny' cannot be read: Permission denied") as caught:
        NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "auto")
    assert str(host.models) not in str(caught.value)
