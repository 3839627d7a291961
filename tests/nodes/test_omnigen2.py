"""OmniGen2 through the nodes: its files in every layout, its references, and what is said of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.tiny import omnigen2 as tiny
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError


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


def _run(load: dict, *, lora: dict | None = None, control: list | None = None, options: dict | None = None, **sample):
    inputs = {
        "pipeline": ["load", 0], "prompt": "a red fox", "negative_prompt": "", "width": 64, "height": 80, "steps": 2,
        "guidance_scale": 4.0, "seed": 1, "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "",
        "batch_size": 1,
    }  # fmt: skip
    graph = {
        "load": {"class_type": "LoadAITKModel", "inputs": {"model": "omnigen2", "dtype": "float32", **load}},
        "sample": {"class_type": "AITKSampler", "inputs": inputs | sample},
    }
    graph["save"] = {
        "class_type": "AITKSaveImage",
        "inputs": {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"},
    }
    if lora is not None:
        own = {"pipeline": ["load", 0], "lora_name": "tiny.safetensors", "strength": 0.8, "application": "auto"}
        graph["lora"] = {"class_type": "ApplyAITKLoRA", "inputs": own | lora}
        graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    if options is not None:
        plain = {
            "cfg_trunc_ratio": 0.25, "renorm_cfg": 1.0, "discrete_flow_shift": 6.0, "system_prompt_on_negative": False,
        }  # fmt: skip
        graph["options"] = {"class_type": "AITKRecipeOptions", "inputs": plain | options}
        graph["sample"]["inputs"]["recipe_options"] = ["options", 0]
    pictures = {}
    if control is not None:
        names = {f"image_{index + 1}": [f"picture{index}", 0] for index in range(len(control))}
        graph["control"] = {"class_type": "AITKControlImages", "inputs": names}
        graph["sample"]["inputs"]["control"] = ["control", 0]
        for index, image in enumerate(control):
            graph[f"picture{index}"] = {"class_type": f"Picture{index}", "inputs": {}}
            pictures[f"Picture{index}"] = _picture(image)
    return run_prompt(graph, {**NODE_CLASS_MAPPINGS, **pictures}).results["sample"]


def _picture(image: torch.Tensor) -> type:
    """A node that gives this IMAGE."""

    class Picture:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "give"
        CATEGORY = "test"

        def give(self) -> tuple[torch.Tensor]:
            return (image,)

    return Picture


def _noise(width: int, height: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, height, width, 3), generator=generator).float() / 255


def test_single_files_give_the_folders_picture(omnigen2, omnigen2_models):
    names = {
        kind: next((omnigen2_models / folder).iterdir()).name
        for kind, folder in (("weights", "diffusion_models"), ("text_encoder", "text_encoders"), ("vae", "vae"))
    }
    expected = _run({"weights": "tiny"})
    assert torch.equal(_run(names)[0], expected[0])
    assert torch.equal(_run({"weights": "tiny", "vae": names["vae"]})[0], expected[0])


@pytest.mark.parametrize("recipe", ["reference pipeline", "trainer preview"])
def test_two_runs_with_references_give_the_same_bytes(omnigen2, recipe):
    images = [_noise(96, 64), _noise(64, 128, seed=1), _noise(64, 64, seed=2)]
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

    base = _run({"weights": "tiny"})
    merged = _run({"weights": "tiny"}, lora={"application": "merged"})
    loaded = engine().counters.parts_loaded
    live = _run({"weights": "tiny"}, lora={"application": "live"})
    assert (merged[4]["samples"] - live[4]["samples"]).abs().max() < 1e-4
    assert not torch.equal(merged[0], base[0])
    assert torch.equal(_run({"weights": "tiny"}, lora={"strength": 0.0})[0], base[0])
    assert engine().counters.parts_loaded == loaded


def test_image_guidance_departs_from_the_preview_and_says_so(omnigen2):
    images = [_noise(96, 64)]
    plain = _run({"weights": "tiny"}, control=images, options={})
    raised = _run({"weights": "tiny"}, control=images, options={"image_guidance_scale": 2.0})
    assert torch.equal(plain[0], _run({"weights": "tiny"}, control=images)[0])
    assert not torch.equal(plain[0], raised[0])
    assert json.loads(plain[6])["guidance"]["as_the_preview"] is True
    assert json.loads(raised[6])["guidance"]["as_the_preview"] is False


ERRORS = [
    (
        {"control": [_noise(64, 64)] * 2, "recipe": "trainer preview"},
        "'trainer preview' of OmniGen2 takes at most 1 control images.*choose the recipe 'reference pipeline'",
    ),
    ({"control": [_noise(15, 900)]}, "Control image 1 is 15 x 900; OmniGen2 sees it at 0 x 896"),
    (
        {"options": {"image_guidance_scale": 2.0}, "recipe": "trainer preview"},
        "image_guidance_scale of AITK Recipe Options would do nothing",
    ),
    ({"options": {"image_guidance_scale": 2.0}}, "would do nothing: no control image is connected"),
    (
        {"options": {"image_guidance_scale": 2.0}, "control": [_noise(64, 64)], "guidance_scale": 1.0},
        "would do nothing at guidance_scale 1",
    ),
    ({"width": 63}, "width is 63: the smallest side is 64"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_what_does_not_fit_is_named(omnigen2, change, message):
    with pytest.raises(AITKError, match=message):
        _run({"weights": "tiny"}, **change)
