"""OmniGen2 through the nodes: its files in every layout, its references, and what is said of what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import omnigen2 as tiny
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from rendering import noise_image, put_into_cache, render
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def omnigen2_models(tmp_path_factory) -> Path:
    """A models folder with a tiny OmniGen2, as a folder and as single files, and a LoRA. Read only."""
    folder = tmp_path_factory.mktemp("omnigen2")
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    files = tiny.write_single_files(folder / "files", checkpoint)
    for kind, file in zip(("diffusion_models", "text_encoders", "vae"), files, strict=True):
        (folder / kind).mkdir()
        file.rename(folder / kind / file.name)
    tiny.make_lora(folder / "loras" / "tiny.safetensors", checkpoint)
    return folder


@pytest.fixture
def omnigen2(host, omnigen2_models: Path) -> PlainHost:
    plain = PlainHost(omnigen2_models, host.input, host.output, "cpu")
    use_host(plain)
    return plain


def _run(load: dict, *, lora: dict | None = None, **change) -> tuple:
    if lora is not None:
        lora = {"lora_name": "tiny.safetensors", **lora}
    return render({"model": "omnigen2", **load}, lora=lora, **{"recipe": "reference pipeline"} | change)


def test_single_files_give_the_folders_picture(omnigen2, omnigen2_models):
    names = {
        kind: next((omnigen2_models / folder).iterdir()).name
        for kind, folder in (("weights", "diffusion_models"), ("text_encoder", "text_encoders"), ("vae", "vae"))
    }
    expected = _run({"weights": "tiny"})
    assert torch.equal(_run(names)[0], expected[0])
    assert torch.equal(_run({"weights": "tiny", "vae": names["vae"]})[0], expected[0])


def test_a_text_encoder_file_without_tokenizer_takes_it_from_the_hub(omnigen2, omnigen2_models, hub_cache, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(omnigen2_models / "diffusers", models / "diffusers")
    (models / "text_encoders").mkdir()
    (whole,) = (omnigen2_models / "text_encoders").iterdir()
    bare = {name: value for name, value in load_file(whole).items() if name != "tokenizer_json"}
    save_file(bare, models / "text_encoders" / "bare.safetensors")
    expected = _run({"weights": "tiny"})
    use_host(PlainHost(models, omnigen2.input, omnigen2.output, "cpu"))
    load = {"weights": "tiny", "text_encoder": "bare.safetensors"}
    with pytest.raises(AITKError, match="'OmniGen2/OmniGen2' is not"):
        _run(load)
    own = "processor/tokenizer.json"
    put_into_cache(hub_cache, "OmniGen2/OmniGen2", {own: omnigen2_models / "diffusers" / "tiny" / own})
    assert torch.equal(_run(load)[0], expected[0])


@pytest.mark.parametrize("recipe", ["reference pipeline", "trainer preview"])
def test_two_runs_with_references_give_the_same_bytes(omnigen2, recipe):
    images = [noise_image(96, 64), noise_image(64, 128, seed=1), noise_image(64, 64, seed=2)]
    images = images if recipe == "reference pipeline" else images[:1]
    first, second = (_run({"weights": "tiny"}, control=images, recipe=recipe)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, _run({"weights": "tiny"}, recipe=recipe)[0])
    # each picture of a batch draws its references' latents with its own seed
    batch = _run({"weights": "tiny"}, control=images, recipe=recipe, batch_size=2)[0]
    assert torch.equal(batch[:1], first)
    assert torch.equal(batch[1:], _run({"weights": "tiny"}, control=images, recipe=recipe, seed=2)[0])
    if len(images) > 1:
        assert not torch.equal(first, _run({"weights": "tiny"}, control=images[::-1], recipe=recipe)[0])


def test_a_lora_merged_and_live_and_its_strength_reload_nothing(omnigen2):
    from comfyui_aitk.nodes.sampler import engine

    # the server's recipe merges in the 16 bits of the file
    def run(**lora) -> tuple:
        return _run({"weights": "tiny"}, lora=lora, recipe="trainer preview")

    base = _run({"weights": "tiny"}, recipe="trainer preview")
    merged = run(application="merged")
    loaded = engine().counters.parts_loaded
    live = run(application="live")
    assert (merged[4]["samples"] - live[4]["samples"]).abs().max() < 1e-4
    assert not torch.equal(merged[0], base[0])
    assert torch.equal(run(strength=0.0)[0], base[0])
    assert engine().counters.parts_loaded == loaded


def test_image_guidance_departs_from_the_preview_and_says_so(omnigen2):
    images = [noise_image(96, 64)]
    plain = _run({"weights": "tiny"}, control=images, options={})
    raised = _run({"weights": "tiny"}, control=images, options={"image_guidance_scale": 2.0})
    assert torch.equal(plain[0], _run({"weights": "tiny"}, control=images)[0])
    assert not torch.equal(plain[0], raised[0])
    assert json.loads(plain[6])["guidance"]["as_the_preview"] is True
    assert json.loads(raised[6])["guidance"]["as_the_preview"] is False


ERRORS = [
    (
        {"control": [noise_image(64, 64)] * 2, "recipe": "trainer preview"},
        "'trainer preview' of OmniGen2 takes at most 1 control images.*choose the recipe 'reference pipeline'",
    ),
    ({"control": [noise_image(15, 900)]}, "Control image 1 is 15 x 900; OmniGen2 sees it at 0 x 896"),
    (
        {"options": {"image_guidance_scale": 2.0}, "recipe": "trainer preview"},
        "image_guidance_scale of AITK Recipe Options would do nothing",
    ),
    ({"options": {"image_guidance_scale": 2.0}}, "would do nothing: no control image is connected"),
    (
        {"options": {"image_guidance_scale": 2.0}, "control": [noise_image(64, 64)], "guidance_scale": 1.0},
        "would do nothing at guidance_scale 1",
    ),
    ({"width": 63}, "width is 63: the smallest side is 64"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_what_does_not_fit_is_named(omnigen2, change, message):
    with pytest.raises(AITKError, match=message):
        _run({"weights": "tiny"}, **change)
