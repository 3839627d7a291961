"""Qwen-Image-Edit, -2509 and -2511 through the nodes: files in every layout, control images, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import qwen_image as single
from comfyui_aitk.headless.tiny import qwen_image_edit as tiny
from comfyui_aitk.headless.tiny.containers import write_gguf_tensors, write_scaled_float8
from comfyui_aitk.headless.tiny.qwen_image_vae import write_wan_vae
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from rendering import noise_image, put_into_cache, render
from safetensors.torch import load_file, save_file

# a control image has a megapixel, whatever the size: what is encoded and loaded stays
pytestmark = pytest.mark.usefixtures("kept_engine")

EDIT, PLUS, NEWEST = "qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus:2511"
REPOSITORIES = {EDIT: "Qwen/Qwen-Image-Edit", PLUS: "Qwen/Qwen-Image-Edit-2509", NEWEST: "Qwen/Qwen-Image-Edit-2511"}
ENCODER, VAE = "qwen_2.5_vl_7b.safetensors", "qwen_image_vae.safetensors"
PARTS = {"text_encoder": ENCODER, "vae": VAE}


@pytest.fixture(scope="session")
def edit_models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout. Read only."""
    folder = tmp_path_factory.mktemp("qwen-image-edit")
    for kind in ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras"):
        (folder / kind).mkdir()
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    tiny.make_checkpoint(folder / "diffusers" / "newest", zero_time=True)
    single.write_single_transformer(folder / "diffusion_models" / "plain.safetensors", checkpoint)
    single.write_single_transformer(folder / "diffusion_models" / "marked.safetensors", checkpoint, zero_time=True)
    encoders = folder / "text_encoders"
    single.write_single_text_encoder(encoders / ENCODER, checkpoint)
    single.write_single_text_encoder(encoders / "new_names.safetensors", checkpoint, new_names=True)
    write_scaled_float8(encoders / "scaled.safetensors", encoders / ENCODER, "old")
    single.write_gguf_text_encoder(encoders / "encoder.gguf", checkpoint, "Q8_0")
    write_gguf_tensors(encoders / "mmproj.gguf", {"v.blk.0.attn_q.weight": torch.ones(32, 32)}, "Q8_0", "clip")
    blind = {name: value for name, value in load_file(encoders / ENCODER).items() if not name.startswith("visual.")}
    save_file(blind, encoders / "blind.safetensors")
    write_wan_vae(folder / "vae" / VAE, checkpoint)
    single.write_all_in_one(folder / "checkpoints" / "all.safetensors", checkpoint)
    single.make_lora(folder / "loras" / "lora.safetensors", checkpoint)
    return folder


@pytest.fixture
def edit(host, edit_models: Path, hub_cache: Path) -> PlainHost:
    plain = PlainHost(edit_models, host.input, host.output, "cpu")
    use_host(plain)
    own = edit_models / "diffusers" / "tiny" / "processor"
    for repository in REPOSITORIES.values():
        put_into_cache(hub_cache, repository, {f"processor/{file.name}": file for file in own.iterdir()})
    return plain


def _run(model: str, load: dict, **change) -> tuple:
    control = [noise_image(80, 72, 1)] if model != EDIT else [noise_image(64, 64, 1)]
    usual = {"width": 64, "height": 64, "guidance_scale": 1.0, "control": control}
    return render({"model": model, **load}, **usual | change)


def _latents(result: tuple) -> torch.Tensor:
    return result[4]["samples"]


def _report(result: tuple) -> dict:
    return json.loads(result[6])


def test_one_picture_from_every_layout(edit):
    expected = _latents(_run(PLUS, {"weights": "tiny"}))
    for load in (
        {"weights": "plain.safetensors", **PARTS},
        {"weights": "plain.safetensors", "text_encoder": "new_names.safetensors", "vae": VAE},
        {"weights": "all.safetensors"},
    ):
        assert torch.equal(_latents(_run(PLUS, load)), expected), load
    found = _latents(_run(PLUS, {"weights": "tiny", "text_encoder": "scaled.safetensors"}))
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def test_2511_is_told_by_its_folder_its_marker_or_the_user(edit):
    expected = _latents(_run(NEWEST, {"weights": "newest"}))
    for model, weights in ((NEWEST, "plain.safetensors"), (PLUS, "marked.safetensors")):
        assert torch.equal(_latents(_run(model, {"weights": weights, **PARTS})), expected), (model, weights)
    # a folder says itself what it is
    assert not torch.equal(_latents(_run(NEWEST, {"weights": "tiny"})), expected)


def test_a_lora_and_control_images_change_the_picture(edit):
    first, second = noise_image(80, 72, 1), noise_image(60, 90, 2)
    expected = _run(PLUS, {"weights": "tiny"})
    found = {
        "lora": _run(PLUS, {"weights": "tiny"}, lora={"lora_name": "lora.safetensors"}),
        "two": _run(PLUS, {"weights": "tiny"}, control=[first, second]),
        "two the other way": _run(PLUS, {"weights": "tiny"}, control=[second, first]),
    }
    latents = [_latents(result) for result in (expected, *found.values())]
    for index, one in enumerate(latents):
        assert all(not torch.equal(one, other) for other in latents[index + 1 :]), index
    report = _report(found["two"])
    assert report["text_encoder"]["sees"] == 2
    assert report["references"] == {"first": "own shape", "encoded": "whole", "latents": "the mean"}


def test_options_of_a_job_s_sample(edit):
    change = {"guidance_scale": 30.0, "negative_prompt": "blurry"}
    expected = _run(PLUS, {"weights": "tiny"}, **change)
    norm = _run(PLUS, {"weights": "tiny"}, **change, options={"do_cfg_norm": True})
    twice = _run(PLUS, {"weights": "tiny"}, **change, options={"first_image_twice": True})
    assert not torch.equal(_latents(norm), _latents(expected))
    assert not torch.equal(_latents(twice), _latents(expected))
    assert [_report(result)["text_encoder"]["sees"] for result in (expected, norm, twice)] == [1, 1, 2]
    assert _report(norm)["guidance"]["length_of_the_prompts_prediction"] is True
    for model, recipe in ((EDIT, "trainer preview"), (PLUS, "reference pipeline")):
        with pytest.raises(AITKError, match=r"do_cfg_norm of AITK Recipe Options would do nothing: the recipe"):
            _run(model, {"weights": "tiny"}, recipe=recipe, options={"do_cfg_norm": True})


def test_control_images_are_encoded_in_tiles_even_for_small_pictures(edit):
    tiles = {"weights": "tiny", "options": RuntimeOptions(own=Chosen.of({"vae_tiling": True}))}
    expected = _latents(_run(PLUS, {"weights": "tiny"}))
    for recipe, differs in (("trainer preview", True), ("trainer preview until 2026-07-09", False)):
        found = _run(PLUS, tiles, recipe=recipe)
        assert torch.equal(_latents(found), expected) != differs
        assert _report(found)["references"]["encoded"] == ("in tiles" if differs else "whole")


def test_an_edit_squashes_its_control_image_and_every_recipe_differs(edit):
    picture = {"width": 96, "height": 64, "control": [noise_image(70, 90, 3)]}
    recipes = ("trainer preview", "reference pipeline")
    found = [_run(EDIT, {"weights": "tiny"}, **picture, recipe=recipe) for recipe in recipes]
    assert not torch.equal(*(_latents(result) for result in found))
    first, second = (_report(result) for result in found)
    assert first["references"]["first"] == "squashed to the picture's size (bilinear)"
    assert second["references"]["first"] == "squashed to the picture's size (lanczos)"
    assert (first["text_encoder"]["positions"], second["text_encoder"]["positions"]) == (
        "one after the other", "in a grid",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "count", "said"),
    [
        (EDIT, 0, r"Qwen-Image-Edit edits a picture, and none is connected. Connect one to AITK Control Images"),
        (PLUS, 0, r"Qwen-Image-Edit-2509 edits a picture, and none is connected. Connect one to three"),
        (EDIT, 2, r"Qwen-Image-Edit takes at most 1 control images; connected: 2"),
    ],
)
def test_how_many_control_images(edit, model, count, said):
    control = [noise_image(64, 64, number) for number in range(count)] or None
    with pytest.raises(AITKError, match=said):
        _run(model, {"weights": "tiny"}, control=control)


def test_what_control_images_and_prompts_cannot_be(edit):
    with pytest.raises(AITKError, match=r"Control image 1 is 4000 x 8, too long for the text encoder"):
        _run(PLUS, {"weights": "tiny"}, control=[noise_image(4000, 8)])
    with pytest.raises(AITKError, match=r"A prompt cannot contain <\|image_pad\|>"):
        _run(PLUS, {"weights": "tiny"}, prompt="<|image_pad|>")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "encoder.gguf",
            r"without the vision tower, with which it sees pictures\. Put that of .*'mmproj.gguf' there has",
        ),
        ("blind.safetensors", r"it is Qwen2.5-VL without the vision tower"),
        ("mmproj.gguf", r"it is a vision tower alone \(mmproj\)"),
    ],
)
def test_encoders_that_see_nothing(edit, file, said):
    with pytest.raises(AITKError, match=said):
        _run(PLUS, {"weights": "tiny", "text_encoder": file})
