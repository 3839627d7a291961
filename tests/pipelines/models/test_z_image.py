"""AI Toolkit's own Z-Image previews, recorded on a tiny checkpoint, by stages; its schedules and eras; its files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import z_image as tiny
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.z_image import loop
from comfyui_aitk.pipelines.models.z_image.recipes import RECIPES, TRAINER, UNTIL_MARCH_21, ZImageRecipe
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.pictures.sizes import Size, snap
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from comfyui_aitk.pipelines.run.start import seeded
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from cpu_kernels import NOISE
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from rendering import denoising, job_of, wanted
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "zimage"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
MODEL = find_model("zimage")
# largest absolute differences on another CPU, from the recordings' own page; measured here: 3e-6, 7e-6
EMBEDS, PREDICTION, SIGMAS = 1e-4, 5e-5, 1e-6


@pytest.fixture(scope="module")
def golden() -> PipelineHandle:
    return PipelineHandle("zimage", Checkpoint.open(GOLDEN / "base", "base", MODEL.files), "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("z_image") / "tiny")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] in ("txt2img", "size")])
@torch.no_grad()
def test_every_stage_agrees_with_ai_toolkit(name, golden, engine):
    case, recorded = CASES[name], load_file(GOLDEN / CASES[name]["tensors"])
    asked = wanted(engine, golden)
    size = snap(case["width"], case["height"], TRAINER.size, asked.model.largest_side(golden.checkpoint))
    job = job_of(golden, case, size)
    texts = asked.model.texts(job)
    assert len(texts) == int(recorded["model_batch"])
    conditioning = engine.embeddings(asked, texts, SilentObserver())
    embeds = load_file(GOLDEN / "embeds.safetensors")
    for embedding, text in zip(conditioning, ("prompt_embeds", "negative_embeds"), strict=False):
        tokens = embedding.embeds[0][embedding.mask[0].bool()]
        assert _distance(tokens, embeds[case["embeds"][text]]) < EMBEDS

    noise = asked.model.noise(seeded("cpu", case["seed"]), job)
    assert _distance(noise, recorded["initial_noise"]) <= NOISE
    schedule = asked.model.schedule(job, case["steps"])
    assert _distance(schedule.sigmas, recorded["sigmas"]) < SIGMAS
    time = loop.model_time(schedule.sigmas[0])
    assert _distance(time.repeat(len(texts)), recorded["model_timestep_step0"]) < SIGMAS
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        found = loop.predict(transformer, noise, time, denoising(job, noise, schedule, conditioning))
    assert _distance(found.cond, recorded["pred_cond_step0"]) < PREDICTION
    assert (found.uncond is None) == ("pred_uncond_step0" not in recorded)
    if found.uncond is not None:
        assert _distance(found.uncond, recorded["pred_uncond_step0"]) < PREDICTION
    assert _distance(-found.guided, recorded["pred_step0"]) < PREDICTION


# ---- schedules and eras ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 9, 25, 30, 100])
def test_schedules_are_the_scheduler_s_to_the_bit(steps):
    """diffusers' own, called as its pipeline does now, and as it did before #13730: down to 0, in float64."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / steps, steps).tolist())
    assert torch.equal(loop.sigmas(TRAINER, steps), scheduler.sigmas)
    if steps > 1:
        scheduler.sigma_min = 0.0
        scheduler.set_timesteps(steps)
        assert torch.equal(loop.sigmas(UNTIL_MARCH_21, steps), scheduler.sigmas)
        assert loop.sigmas(UNTIL_MARCH_21, steps)[-2:].tolist() == [0.0, 0.0]


ERAS = {
    "reference pipeline": ((0.0, 1.0, 1.25, 4.0), 32, True, True),
    "trainer preview": ((0.0, 0.0, 0.25, 3.0), 16, False, True),
    "trainer preview until 2026-07-14": ((0.0, 0.0, 0.25, 3.0), 16, True, True),
    "trainer preview until 2026-07-12": ((0.0, 0.0, 0.25, 3.0), 16, True, False),
    "trainer preview until 2026-07-07": ((0.0, 1.0, 1.25, 4.0), 16, True, False),
    "trainer preview until 2026-05-27": ((0.0, 1.0, 1.25, 4.0), 32, True, False),
    "trainer preview until 2026-03-21": ((0.0, 0.0, 1.25, 4.0), 32, True, False),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_eras_differ_as_the_trainer_did(recipe: ZImageRecipe):
    factors, multiple, idle, plain = ERAS[recipe.name]
    assert tuple(loop.guidance_factor(recipe, scale) for scale in (0, 1, 1.25, 4)) == factors
    size = snap(80, 112, recipe.size, 8192)
    assert (size.width, size.height) == ((80, 112) if multiple == 16 else (64, 96))
    assert recipe.idle_last_step == idle
    assert bool(recipe.plain) == plain


def test_the_eras_follow_each_other_without_a_gap():
    eras = [recipe.era for recipe in RECIPES if recipe.era is not None]
    assert eras[0].last is None
    for later, earlier in pairwise(eras):
        assert earlier.last is not None
        assert earlier.last < later.first
    assert set(ERAS) == {recipe.name for recipe in RECIPES}


@torch.no_grad()
def test_the_reference_recipe_is_diffusers_pipeline_as_the_page_calls_it(folder, engine):
    """At one step less than the page: this diffusers spends none on nothing."""
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt="a fox", negative_prompt="fog", width=64, height=96, num_inference_steps=4, guidance_scale=2.5,
        generator=torch.Generator().manual_seed(3), output_type="pt",
    ).images  # fmt: skip
    handle = PipelineHandle("zimage", Checkpoint.open(folder, "tiny", MODEL.files), "float32")
    request = SampleRequest(
        "reference pipeline", "a fox", "fog", width=64, height=96, steps=5, guidance_scale=2.5, seed=3
    )
    found = sample(engine, handle, request, SilentObserver())
    # five levels down to 0 are four down to a quarter
    assert found.report["schedule"]["last_step"] == "changes nothing"
    assert torch.equal(found.images, (expected.permute(0, 2, 3, 1) * 255).round() / 255)


@torch.no_grad()
def test_what_the_trainer_left_plain_changed_with_its_eras(golden, engine):
    """Until 13 July 2026 every Linear was quantised; since then the embedders and the last layer are not."""
    options = type(golden.options)("qfloat8")
    quantised = PipelineHandle("zimage", golden.checkpoint, "float32", options)
    found = {}
    for recipe in ("trainer preview", "trainer preview until 2026-07-12"):
        with engine.on_device(wanted(engine, quantised, recipe), "transformer", SilentObserver()) as transformer:
            linear = [module for module in transformer.modules() if isinstance(module, torch.nn.Linear)]
            found[recipe] = (sum(hasattr(layer, "weight_qtype") for layer in linear), len(linear))
    # counted in AI Toolkit: 46 of 52
    assert found == {"trainer preview": (46, 52), "trainer preview until 2026-07-12": (52, 52)}


# ---- files ----------------------------------------------------------------------------------------------------------


def test_original_names_are_those_of_the_released_file(folder, tmp_path):
    """Both ways: file names to the model's, and the model's modules to the names that LoRA files use."""
    path = tiny.write_single_transformer(tmp_path / "x.safetensors", folder, norm_final=True)
    source = open_single_file(path, path.name, MODEL.files)["transformer"]
    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    read = dict(source.read(source.tensor_infos()))
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)


def test_a_fused_weight_that_is_no_three_shares_is_named(folder, tmp_path):
    tensors = tiny.original_transformer(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    tensors["layers.0.attention.qkv.weight"] = tensors["layers.0.attention.qkv.weight"][:-1].clone()
    path = tiny.write_tensors(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(FileError, match="has 383 rows, which are not three equal shares"):
        open_single_file(path, path.name, MODEL.files)["transformer"].tensor_infos()


def test_sides_end_where_the_table_of_positions_does(golden, engine):
    asked = wanted(engine, golden, size=Size(64, 64))
    assert asked.model.largest_side(golden.checkpoint) == 8192


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max())
