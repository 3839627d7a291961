"""The sampler node's rules: texts, latents and denoise, what its outputs are."""

from __future__ import annotations

import json

import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS

BASE = {
    "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 96, "steps": 4, "guidance_scale": 4.0, "seed": 3,
    "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "", "batch_size": 1,
}  # fmt: skip


@pytest.fixture
def run(host):
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "float32")

    def run(**inputs: object) -> dict:
        cls = NODE_CLASS_MAPPINGS["AITKSampler"]
        values = cls().sample(**BASE | {"pipeline": pipeline} | inputs)["result"]
        return dict(zip(cls.RETURN_NAMES, values, strict=True)) | {"given": pipeline}

    return run


def test_outputs(run):
    out = run(width=90, height=130, batch_size=2)
    assert out["image"].shape == (2, 128, 64, 3)
    assert out["image"].dtype == torch.float32
    assert torch.equal((out["image"] * 255).round() / 255, out["image"])
    assert (out["width"], out["height"]) == (64, 128)
    assert out["latent"]["samples"].shape == (2, 16, 16, 8)
    assert out["pipeline"] is out["given"]
    report = json.loads(out["report"])
    assert report["size"] == {"asked": [90, 130], "rendered": [64, 128]}
    assert report["schedule"]["shift"] == 6.0
    assert report["sigmas"] == pytest.approx([1.0, 18 / 19, 6 / 7, 2 / 3, 0.0], abs=1e-6)
    assert report["model"]["weights"] == "tiny"
    # no absolute path may get into a shared picture
    assert "/" not in json.dumps({k: v for k, v in report.items() if k != "versions"})


def test_the_trigger_word_is_replaced_when_given_and_stays_literal_when_not(run):
    named = run(prompt="[trigger] and [name]", trigger_word="fox")
    assert json.loads(named["report"])["prompt"] == "fox and fox"
    assert torch.equal(named["image"], run(prompt="fox and fox")["image"])
    literal = run(prompt="[trigger]")
    assert json.loads(literal["report"])["prompt"] == "[trigger]"
    assert not torch.equal(literal["image"], run(prompt="")["image"])


def test_the_trainer_strips_the_prompt_and_cuts_it_at_its_flags(run):
    plain = run(recipe="trainer preview", prompt="a red fox")
    for prompt in ("a red fox\n", "  a red fox", "a red fox--blue", "a red fox --n ugly --l 2"):
        assert torch.equal(run(recipe="trainer preview", prompt=prompt)["image"], plain["image"])
    # diffusers takes it as it is
    assert not torch.equal(run(prompt="a red fox\n")["image"], run(prompt="a red fox")["image"])


@pytest.mark.parametrize(("recipe", "negative_moves"), [("reference pipeline", False), ("trainer preview", True)])
def test_a_system_prompt_reaches_the_texts_that_the_recipe_templates(run, recipe, negative_moves):
    from comfyui_aitk.nodes.sampler import engine

    def encoded(**inputs: object) -> int:
        before = engine().counters.texts_encoded
        run(recipe=recipe, steps=1, height=64, **inputs)
        return engine().counters.texts_encoded - before

    assert encoded(negative_prompt="fog") == 2
    assert encoded(negative_prompt="fog", system_prompt="Paint.") == 1 + negative_moves


def test_the_recipes_are_different_pictures(run):
    assert not torch.equal(run(height=64)["image"], run(height=64, recipe="trainer preview")["image"])


def test_denoise_runs_the_last_steps_of_a_longer_schedule_from_the_latent(run):
    first = run()
    noise_only = run(latent=first["latent"], denoise=1.0, width=512, height=512)
    assert torch.equal(noise_only["image"], first["image"]), "denoise 1 starts from noise, at the latent's size"
    part = run(latent=first["latent"], denoise=0.5)
    whole = run(steps=8)
    assert torch.equal(part["sigmas"], whole["sigmas"][-5:])
    assert part["image"].shape == first["image"].shape
    # int(4 / 0.3) = 13 steps, the last 4 of them
    assert torch.equal(run(latent=first["latent"], denoise=0.3)["sigmas"], run(steps=13, height=64)["sigmas"][-5:])
    little, part, much = (run(latent=first["latent"], denoise=d, seed=77) for d in (0.05, 0.5, 1.0))

    def distance(out: dict) -> float:
        return float((out["latent"]["samples"] - first["latent"]["samples"]).abs().mean())

    assert distance(little) < distance(part) < distance(much)


def test_a_latent_of_one_serves_the_whole_batch(run):
    latent = run()["latent"]
    batch = run(latent=latent, denoise=0.5, batch_size=2)
    single = run(latent=latent, denoise=0.5, seed=BASE["seed"] + 1)
    assert torch.equal(batch["image"][1], single["image"][0])


def test_the_start_is_mixed_in_model_scale(host, checkpoint):
    from comfyui_aitk.pipelines.models import find_model, load_model
    from comfyui_aitk.pipelines.models.schedule import Schedule

    given, noise = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    model = load_model(find_model("lumina2"))
    start = Schedule(torch.tensor([0.25, 0.0])).start(noise, model.from_comfy(given, checkpoint))
    # ComfyUI's latents of this autoencoder are x / 0.3611 + 0.1159
    expected = 0.75 * (given - 0.1159) * 0.3611 + 0.25 * noise
    assert torch.allclose(start, expected, atol=1e-6)
