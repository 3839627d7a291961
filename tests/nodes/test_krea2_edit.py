"""Krea 2 Edit through the nodes: control images in every way that its options know, its files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import krea2 as tiny
from comfyui_aitk.headless.tiny.containers import write_gguf_text_encoder
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import AITKError
from rendering import noise_image, put_into_cache, render

ENCODER = "qwen3vl_4b_bf16.safetensors"
ONE = [noise_image(96, 64)]
TWO = [*ONE, noise_image(64, 128, seed=1)]


@pytest.fixture(scope="session")
def edit_models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout. Read only."""
    folder = tmp_path_factory.mktemp("krea2-edit")
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    encoders = folder / "text_encoders"
    tiny.write_single_text_encoder(encoders / ENCODER, checkpoint)
    write_gguf_text_encoder(encoders / "blind.gguf", tiny.language_model(checkpoint), "BF16", "qwen3vl")
    tiny.write_all_in_one(folder / "checkpoints" / "all.safetensors", checkpoint)
    tiny.make_lora(folder / "loras" / "lora.safetensors", checkpoint)
    return folder


@pytest.fixture
def krea2_edit(host, edit_models: Path, hub_cache: Path) -> PlainHost:
    plain = PlainHost(edit_models, host.input, host.output, "cpu")
    use_host(plain)
    own = edit_models / "diffusers" / "tiny" / "tokenizer"
    put_into_cache(hub_cache, "Qwen/Qwen3-VL-4B-Instruct", {file.name: file for file in own.iterdir()})
    return plain


def _run(load: dict | None = None, **change) -> tuple:
    load = {"model": "krea2:o_edit", "weights": "tiny", **(load or {})}
    return render(load, **{"width": 64, "height": 64} | change)


def _latent(**change) -> torch.Tensor:
    return _run(**change)[4]["samples"]


def test_without_control_images_it_is_krea_2(krea2_edit):
    found, plain = _run(), _run({"model": "krea2"})
    assert torch.equal(found[0], plain[0])
    assert json.loads(found[6])["references"] is None
    assert not torch.equal(_latent(control=ONE), found[4]["samples"])


def test_every_option_and_every_picture_moves_the_latents(krea2_edit):
    found = {
        "one": _latent(control=ONE),
        "two": _latent(control=TWO),
        "two, the other way round": _latent(control=TWO[::-1]),
        "all see all": _latent(control=TWO, options={"kv_cache": False}),
        "own sizes": _latent(control=TWO, options={"match_target_res": False}),
        "twice in the text": _latent(control=TWO, options={"first_image_twice": True}),
        "no guidance": _latent(control=TWO, guidance_scale=1.0),
        "earlier": _latent(control=TWO, recipe="trainer preview until 2026-07-07"),
    }
    names = list(found)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert (found[name] - found[other]).abs().max() > 1e-4, (name, other)
    loaded, encoded = engine().counters.parts_loaded, engine().counters.texts_encoded
    assert torch.equal(_latent(control=TWO), found["two"])
    assert (engine().counters.parts_loaded, engine().counters.texts_encoded) == (loaded, encoded)


def test_files_with_a_vision_tower_give_the_folders_picture(krea2_edit):
    expected = _run(control=ONE)[0]
    assert torch.equal(_run({"text_encoder": ENCODER}, control=ONE)[0], expected)
    assert torch.equal(_run({"weights": "all.safetensors"}, control=ONE)[0], expected)


def test_the_report_says_what_the_control_images_see(krea2_edit):
    report = json.loads(_run(control=TWO, lora={"lora_name": "lora.safetensors"})[6])
    assert report["references"] == {
        "see": "each other", "pixels": "as the picture's", "in_text": 2, "latents": "drawn (trainer)",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("load", "change", "message"),
    [
        ({}, {"control": [noise_image(8000, 16)]}, "Control image 1 is 8000 x 16, too long"),
        ({}, {"control": ONE, "prompt": "a <|image_pad|>"}, "cannot contain <|image_pad|>"),
        ({"text_encoder": "blind.gguf"}, {}, "without the vision tower"),
        ({"model": "krea2"}, {"control": ONE}, "control image"),
        ({"model": "krea2"}, {"options": {"kv_cache": False}}, "kv_cache of AITK Recipe Options would do nothing"),
    ],
)
def test_what_is_refused(krea2_edit, load, change, message):
    with pytest.raises(AITKError, match=message.replace("|", r"\|")):
        _run(load, **change)
