"""AI Toolkit's own Qwen-Image previews, recorded on a tiny checkpoint, by stages; its schedule, tokens and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny import qwen_image as tiny
from comfyui_aitk.pipelines.errors import FileError, InputError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.jobs.model_section import read_model, wanted_model
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.qwen_image import loop
from comfyui_aitk.pipelines.models.qwen_image.files import folder_config
from comfyui_aitk.pipelines.models.qwen_image.recipes import (
    RECIPES,
    TEMPLATE,
    TEMPLATE_TOKENS,
    TRAINER,
    UNTIL_AUGUST_20,
    UNTIL_JULY_9,
)
from comfyui_aitk.pipelines.models.qwen_image.tokens import packed, unpacked
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.pictures.sizes import Size, snap
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from comfyui_aitk.pipelines.run.start import seeded
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from cpu_kernels import NOISE
from diffusers import QwenImagePipeline
from rendering import denoising, job_of, wanted
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "qwen_image"
INDEX = json.loads((GOLDEN / "index.json").read_text())
CASES = {case["name"]: case for case in INDEX["cases"]}
BF16 = {case["name"]: case for case in json.loads((GOLDEN / "bf16" / "index.json").read_text())["cases"]}
MODEL = find_model("qwen_image")
# largest absolute differences on another CPU, from the recordings' own page; measured here: 0
EMBEDS, PREDICTION, SIGMAS = 1e-4, 5e-5, 1e-6
STAGES = ("txt2img", "size", "long")


@pytest.fixture(scope="module")
def golden() -> PipelineHandle:
    return PipelineHandle("qwen_image", Checkpoint.open(GOLDEN / "base", "base", MODEL.files), "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("qwen_image") / "tiny")


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case["kind"] in STAGES and "sigmas" in case["shapes"]]
)
@torch.no_grad()
def test_every_stage_agrees_with_ai_toolkit(name, golden, engine):
    case, recorded = CASES[name], load_file(GOLDEN / CASES[name]["tensors"])
    asked = wanted(engine, golden)
    size = snap(case["width"], case["height"], TRAINER.size, asked.model.largest_side(golden.checkpoint))
    job = job_of(golden, case, size)
    texts = asked.model.texts(job)
    conditioning = engine.embeddings(asked, texts, SilentObserver())
    embeds = load_file(GOLDEN / "embeds.safetensors")
    for embedding, text in zip(conditioning, ("prompt_embeds", "negative_embeds"), strict=False):
        # 1,024 rows are encoded, 512 used
        theirs = embeds[case["embeds"][text]][:, :512]
        assert _distance(embedding.embeds, theirs) < EMBEDS
        assert bool(embedding.mask.all())

    noise = asked.model.noise(seeded("cpu", case["seed"]), job)
    assert _distance(noise[:, :, 0], recorded["initial_noise"]) <= NOISE
    schedule = asked.model.schedule(job, case["steps"])
    assert _distance(schedule.sigmas, recorded["sigmas"]) < SIGMAS
    assert _distance(loop.model_time(schedule.sigmas[0], torch.float32), recorded["model_timestep_step0"]) < SIGMAS
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        predict = loop.Predictor(transformer, denoising(job, noise, schedule, conditioning))
        found = predict(packed(noise), schedule.sigmas[0])
    assert _distance(_picture(found.cond, noise), recorded["pred_cond_step0"]) < PREDICTION
    assert (found.uncond is None) == ("pred_uncond_step0" not in recorded) == (case["guidance"] <= 1)
    if found.uncond is not None:
        assert _distance(_picture(found.uncond, noise), recorded["pred_uncond_step0"]) < PREDICTION
    assert _distance(_picture(found.guided, noise), recorded["pred_step0"]) < PREDICTION


def test_every_recorded_stage_is_compared_somewhere():
    compared = {"initial_noise", "sigmas", "model_timestep_step0", "pred_cond_step0", "pred_uncond_step0", "pred_step0"}
    in_nodes = {"final_latents", "image_uint8"}
    assert {name for case in CASES.values() for name in case["shapes"]} == compared | in_nodes
    # what a recovery adapter gives is compared through its node
    kinds = {case["kind"] for case in CASES.values() if "pred_step0" in case["shapes"]}
    assert kinds == {*STAGES, "quantized_ara"}


# relative error; measured: 0. Frequencies that are not rounded cost 1e-2 of the embeddings, and other kernels 1.7e-2 of
# the prediction by themselves: where they run, AI Toolkit is to be run beside (``live/test_ai_toolkit_qwen_image.py``)
SPREAD = 2e-3


@pytest.mark.usefixtures("recorded_kernels")
@pytest.mark.parametrize("name", [name for name, case in BF16.items() if case["kind"] == "txt2img"])
@torch.no_grad()
def test_every_rounding_of_bfloat16_is_ai_toolkit_s(name, golden, engine):
    case, recorded = BF16[name], load_file(GOLDEN / "bf16" / BF16[name]["tensors"])
    handle = PipelineHandle("qwen_image", golden.checkpoint, "bfloat16")
    asked, job = wanted(engine, handle), job_of(handle, case, Size(case["width"], case["height"]))
    conditioning = engine.embeddings(asked, asked.model.texts(job), SilentObserver())
    embeds = load_file(GOLDEN / "bf16" / "embeds.safetensors")
    assert _relative(conditioning[0].embeds, embeds[case["embeds"]["prompt_embeds"]]) < SPREAD
    noise = asked.model.noise(seeded("cpu", case["seed"]), job)
    assert torch.equal(noise[:, :, 0].float(), recorded["initial_noise"].float())
    schedule = asked.model.schedule(job, case["steps"])
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        picture = denoising(job, noise, schedule, conditioning)
        first = loop.Predictor(transformer, picture)(packed(noise), schedule.sigmas[0])
        latents = loop.denoise(transformer, picture)
    assert _relative(_picture(first.guided, noise), recorded["pred_step0"]) < SPREAD
    assert _relative(latents[:, :, 0], recorded["final_latents"]) < SPREAD


# ---- schedule, tokens, texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 4, 8, 20, 25, 30, 50, 100])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 6889, 9216])
def test_schedules_are_the_scheduler_s_under_the_trainer_s_numpy(steps, tokens):
    """To the bit with NumPy 1, which AI Toolkit has; NumPy 2 rounds one constant, a unit in the last place or two."""
    scheduler = tiny.scheduler()
    slope = (0.9 - 0.5) / (8192 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=tokens * slope + (0.5 - slope * 256))
    found = loop.sigmas(steps, tokens)
    assert torch.allclose(found, scheduler.sigmas, rtol=0, atol=2.5e-7)
    if np.__version__.startswith("1."):
        assert torch.equal(found, scheduler.sigmas)
    assert found[0] == 1
    assert abs(found[-2] - 0.02) < 1e-7
    assert found[-1] == 0


def test_one_step_is_refused_because_the_scheduler_gives_nan(golden, engine):
    assert bool(loop.sigmas(1, 16).isnan().any())
    asked = wanted(engine, golden)
    job = job_of(golden, CASES["txt_64x64_g4"], Size(64, 64))
    with pytest.raises(InputError, match=r"renders nothing in 1 step.*Choose 2 steps or more"):
        asked.model.schedule(job, 1)


def test_tokens_are_the_pipeline_s():
    latents = torch.arange(16.0 * 6 * 4).view(1, 16, 1, 6, 4)
    tokens = packed(latents)
    assert torch.equal(tokens, QwenImagePipeline._pack_latents(latents[:, :, 0], 1, 16, 6, 4))
    assert torch.equal(unpacked(tokens, 6, 4), latents)
    assert torch.equal(unpacked(tokens, 6, 4), QwenImagePipeline._unpack_latents(tokens, 48, 32, 8))


def test_the_template_s_head_has_as_many_tokens_as_are_left_out(folder, golden, engine):
    head = TEMPLATE.split("{}", maxsplit=1)[0]
    assert len(tiny.make_tokenizer().encode(head).ids) == TEMPLATE_TOKENS
    with engine.on_device(wanted(engine, golden), "text_encoder", SilentObserver()) as encoder:
        assert len(encoder.tokenizer(head, None)) == TEMPLATE_TOKENS


def test_a_long_text_is_cut_behind_the_encoder_and_the_report_says_so(golden, engine):
    case = CASES["txt_long"]
    request = SampleRequest(
        "trainer preview", case["prompt"], "fog, " * 600, width=64, height=64, steps=2, guidance_scale=4.0, seed=1
    )
    notes = sample(engine, golden, request, SilentObserver()).report["notes"]
    # both texts, of which the second is longer than what is encoded, too
    assert sum("was cut at 512 tokens" in note for note in notes) == 2, notes


def test_the_first_previews_used_every_row_of_a_long_text(golden, engine):
    """The recording has all rows that were encoded; today's recipes use 512 of them."""
    case = CASES["txt_long"]
    recorded = load_file(GOLDEN / "embeds.safetensors")[case["embeds"]["prompt_embeds"]]
    asked, size = wanted(engine, golden), Size(case["width"], case["height"])
    job = job_of(golden, case, size, UNTIL_AUGUST_20.name)
    found = engine.embeddings(asked, asked.model.texts(job), SilentObserver())[0]
    assert found.embeds.shape[1] == 589
    assert _distance(found.embeds, recorded) < EMBEDS
    assert found.cut_tokens == 0


@torch.no_grad()
def test_the_reference_recipe_is_diffusers_pipeline_as_the_page_calls_it(folder, engine):
    pipeline = QwenImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt="a fox", negative_prompt="fog", width=64, height=96, num_inference_steps=4, true_cfg_scale=2.5,
        generator=torch.Generator().manual_seed(3), output_type="pt",
    ).images  # fmt: skip
    handle = PipelineHandle("qwen_image", Checkpoint.open(folder, "tiny", MODEL.files), "bfloat16")
    request = SampleRequest(
        "reference pipeline", "a fox", "fog", width=64, height=96, steps=4, guidance_scale=2.5, seed=3
    )
    found = sample(engine, handle, request, SilentObserver())
    assert torch.equal(found.images, (expected.float().permute(0, 2, 3, 1) * 255).round() / 255)


# ---- recipes and files -----------------------------------------------------------------------------------------------


def test_the_eras_follow_each_other_without_a_gap():
    eras = [recipe.era for recipe in RECIPES[1:]]
    assert [(era.first, era.last) for era in eras if era] == [
        ("2026-07-10", None), ("2025-08-21", "2026-07-09"), ("2025-08-04", "2025-08-20"),
    ]  # fmt: skip
    assert RECIPES[0].era is None and RECIPES[2:] == (UNTIL_JULY_9, UNTIL_AUGUST_20)
    assert [recipe.tiled_by_low_vram for recipe in RECIPES] == [True, True, False, False]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_sides_are_floored_to_32(recipe):
    size = snap(79, 109, recipe.size, 16384)
    assert (size.width, size.height) == (64, 96)


def test_single_files_are_told_by_their_marker(folder, tmp_path):
    plain = tiny.write_single_transformer(tmp_path / "x.safetensors", folder, "model.diffusion_model.")
    marked = tiny.write_single_transformer(tmp_path / "y.safetensors", folder, zero_time=True)
    configs = [open_single_file(path, path.name, MODEL.files)["transformer"].config() for path in (plain, marked)]
    assert [config["zero_cond_t"] for config in configs] == [False, True]
    own = json.loads((folder / "transformer" / "config.json").read_text())
    assert configs[0] == {key: own[key] for key in configs[0]}
    # older repositories do not say it
    del own["zero_cond_t"]
    assert folder_config(own)["zero_cond_t"] is False


def test_a_layered_checkpoint_is_named(folder, tmp_path):
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors["model.diffusion_model.time_text_embed.addition_t_embedding.weight"] = torch.zeros(2, 128)
    path = tiny.write_tensors(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(FileError, match="it is Qwen-Image-Layered, which this pack does not run"):
        open_single_file(path, path.name, MODEL.files)


# ---- training jobs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "name", "model"),
    [
        ("qwen_image", "Qwen/Qwen-Image", "qwen_image"),
        ("qwen_image:2512", "Qwen/Qwen-Image-2512", "qwen_image:2512"),
        # what stands behind the colon may be lost
        ("qwen_image", "Qwen/Qwen-Image-2512", "qwen_image:2512"),
        ("qwen_image:2512", "/models/own", "qwen_image:2512"),
    ],
)
def test_a_job_of_the_trainer_s_interface_is_found(arch, name, model):
    """With what it sets: both parts quantised, and low_vram, which tiles."""
    section = {
        "arch": arch, "name_or_path": name, "quantize": True, "quantize_te": True, "qtype": "qfloat8",
        "qtype_te": "qfloat8", "low_vram": True,
    }  # fmt: skip
    read, notes = read_model({"model": section, "train": {"dtype": "bf16"}}, "0.12.26")
    found = wanted_model(read)
    assert (found.id, found.base, found.dtype, found.problems, notes) == (model, name, "bfloat16", (), ())
    assert found.options.own.get("vae_tiling", False) is True
    assert (found.options.transformer_quantization, found.options.text_encoder_quantization) == ("qfloat8", "qfloat8")


def test_parts_of_a_job_lie_where_ai_toolkit_takes_them_from():
    section = {"arch": "qwen_image", "name_or_path": "/models/x.safetensors", "extras_name_or_path": "/models/base"}
    section |= {"vae_path": "/models/vae", "assistant_lora_path": "/models/a.safetensors"}
    found = wanted_model(read_model({"model": section, "train": {"dtype": "bf16"}}, "")[0])
    assert found.elsewhere == {"extras_name_or_path": "/models/base"}
    said = " ".join(found.notes)
    assert "model.vae_path to '/models/vae', which AI Toolkit does not read for Qwen-Image" in said
    assert "at which AI Toolkit stops with Qwen-Image" in said


def _picture(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return unpacked(tokens, *like.shape[-2:])[:, :, 0]


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
