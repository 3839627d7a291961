"""AI Toolkit's own previews of Qwen-Image-Edit and -2509, recorded on tiny checkpoints, by stages; jobs and times."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.jobs.architecture import facts_of
from comfyui_aitk.pipelines.jobs.job_samples import job_samples
from comfyui_aitk.pipelines.jobs.model_section import read_model
from comfyui_aitk.pipelines.jobs.sample_section import read_section
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.qwen_image import control, loop
from comfyui_aitk.pipelines.models.qwen_image.edit_recipes import (
    EDIT_RECIPES,
    EDIT_TEMPLATE,
    EDIT_TEMPLATE_TOKENS,
    EDIT_TRAINER,
    PLUS_RECIPES,
    PLUS_TRAINER,
    RECIPES_2511,
)
from comfyui_aitk.pipelines.models.qwen_image.tokens import packed, unpacked
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.parts.encoder import Embedding
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.pictures.sizes import Size, snap
from comfyui_aitk.pipelines.run.start import seeded
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from cpu_kernels import NOISE
from PIL import Image
from rendering import denoising, job_of, wanted
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent.parent.parent / "golden"
EDIT, PLUS = "qwen_image_edit", "qwen_image_edit_plus"
CASES = {
    (model, case["name"]): case
    for model in (EDIT, PLUS)
    for case in json.loads((GOLDEN / model / "index.json").read_text())["cases"]
}
STAGED = ("control_1_96x64", "control_moves", "control_1_guidance_60", "control_1_guidance_60_cfg_norm", "control_3")
# largest absolute differences on another CPU: measured 4e-6, 1e-6, 4e-6; at a guidance of 60 that many times as much.
# A picture that is not divided by 255 twice costs 3.7 of the embeddings and 0.6 of the prediction
EMBEDS, PREDICTION, SIGMAS = 1e-4, 5e-5, 1e-6


def _handle(model: str) -> PipelineHandle:
    base = GOLDEN / model / "base"
    return PipelineHandle(model, Checkpoint.open(base, "base", find_model(model).files), "float32")


def _picture(path: Path) -> Picture:
    return Picture.of(torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None].float() / 255)


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first.float() - second.float()).abs().max())


@pytest.mark.parametrize("key", [key for key in CASES if key[1] in STAGED], ids="/".join)
@torch.no_grad()
def test_every_stage_agrees_with_ai_toolkit(key, engine):
    model, case, folder = key[0], CASES[key], GOLDEN / key[0]
    recorded, embeds = load_file(folder / case["tensors"]), load_file(folder / "embeds.safetensors")
    handle = _handle(model)
    asked = wanted(engine, handle)
    recipe = find_model(model).recipes["trainer preview"]
    size = snap(case["width"], case["height"], recipe.size, asked.model.largest_side(handle.checkpoint))
    references = tuple(_picture(folder / path) for path in case["control_images"])
    recipe = replace(recipe, cfg_norm=bool(case.get("do_cfg_norm")) or model == EDIT)
    job = replace(job_of(handle, case, size, references=references), recipe=recipe)

    asked.model.check_references(job)
    texts = asked.model.texts(job)
    conditioning = engine.embeddings(asked, texts, SilentObserver())
    for embedding, name in zip(conditioning, ("prompt_embeds", "negative_embeds"), strict=False):
        if name in case["embeds"]:
            assert _distance(embedding.embeds, embeds[case["embeds"][name]]) < EMBEDS
        assert bool(embedding.mask.all())
    # tokens of a picture, of which four patches are one; the negative prompt's may be of another size
    for embedding, name in zip(conditioning, ("prompt", "negative"), strict=False):
        assert embedding.embeds.shape[1] > recorded[f"{name}_grid_thw"].prod(-1).sum() // 4

    with engine.on_device(asked, "vae", SilentObserver()) as vae:
        control_latents = asked.model.encode_references(vae, job, seeded("cpu", 1), "cpu")
    shapes = [(1, one.shape[-2] // 2, one.shape[-1] // 2) for one in control_latents]
    assert shapes == [tuple(row) for row in recorded["img_shapes"][1:].tolist()]
    for index, latents in enumerate(control_latents):
        if f"ref_latents_{index}_every8" in recorded:
            thin = latents[:, :, 0, ::8, ::8]
            assert _distance(thin, recorded[f"ref_latents_{index}_every8"]) < PREDICTION
            pixels = control.prepared(references[index].pixels, recipe, size)
            assert torch.equal(pixels[:, :, :32, :32], recorded[f"ref_pixels_{index}_corner"])
            assert list(pixels.shape) == recorded[f"ref_pixels_{index}_shape"].tolist()

    noise = asked.model.noise(seeded("cpu", case["seed"]), job)
    assert _distance(noise[:, :, 0], recorded["initial_noise"]) <= NOISE
    schedule = asked.model.schedule(job, case["steps"])
    assert _distance(schedule.sigmas, recorded["sigmas"]) < SIGMAS
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        picture = denoising(job, noise, schedule, conditioning, references=control_latents)
        found = loop.Predictor(transformer, picture)(packed(noise), schedule.sigmas[0])
    bound = PREDICTION * max(1.0, case["guidance"] / 4)
    for name, own in (("cond", found.cond), ("uncond", found.uncond), ("", found.guided)):
        stage = f"pred_{name}_step0" if name else "pred_step0"
        if own is not None:
            assert _distance(unpacked(own, *noise.shape[-2:])[:, :, 0], recorded[stage]) < bound, stage


def test_every_recorded_stage_is_compared_somewhere():
    compared = {
        "initial_noise", "sigmas", "pred_cond_step0", "pred_uncond_step0", "pred_step0", "img_shapes",
        "prompt_grid_thw", "negative_grid_thw", "final_latents", "image_uint8", "prompt_pixel_values_thin",
        "model_timestep_step0",
    }  # fmt: skip
    compared |= {
        f"ref_{what}" for n in (0, 1, 2) for what in (f"latents_{n}_every8", f"pixels_{n}_corner", f"pixels_{n}_shape")
    }
    for (model, _), case in CASES.items():
        assert load_file(GOLDEN / model / case["tensors"]).keys() <= compared


def test_sizes_of_control_images():
    size = Size(96, 64)
    assert control.encoded_size(80, 72) == (1088, 960)
    assert control.encoded_size(1024, 1024) == (1024, 1024)
    wide = torch.zeros((40, 200, 3), dtype=torch.uint8)
    assert control.prepared(wide, PLUS_TRAINER, size).shape == (1, 3, 448, 2304)
    # of the picture's shape, whatever the control image's is
    assert control.prepared(wide, EDIT_TRAINER, size).shape == (1, 3, 832, 1248)
    # the text's positions begin behind half of the longest side: 2304 pixels are 144 tokens
    picture = Picture.of(wide[None].float())
    assert control.most_rows((picture,), PLUS_TRAINER, size) == 4096 - 72
    # 5792 pixels, of the picture's shape
    assert control.most_rows((picture,), EDIT_TRAINER, Size(2048, 64)) == 4096 - 181


def test_more_tokens_than_there_are_positions_are_refused_before_the_transformer_is_loaded(engine):
    handle, case = _handle(PLUS), CASES[PLUS, "control_1_96x64"]
    asked = wanted(engine, handle)
    picture = _picture(GOLDEN / PLUS / case["control_images"][0])
    job = job_of(handle, case, Size(96, 64), references=(picture,))
    rows = Embedding(torch.zeros(1, 4070, 32), torch.ones(1, 4070, dtype=torch.int64), 0)
    noise, schedule = torch.zeros(asked.model.latent_shape(job.size)), asked.model.schedule(job, 2)
    with pytest.raises(InputError, match="are 4070 tokens, and Qwen-Image-Edit-2509 has positions for 4062 beside"):
        asked.model.denoise(pytest.fail, denoising(job, noise, schedule, [rows]))


def test_texts_name_their_pictures():
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert control.in_text("{a}", 1, EDIT_TRAINER) == EDIT_TEMPLATE.replace("{}", f"{picture}{{a}}")
    shown = f"Picture 1: {picture}Picture 2: {picture}b"
    assert control.in_text("b", 2, PLUS_TRAINER) == EDIT_TEMPLATE.replace("{}", shown)
    assert control.sight(PLUS_TRAINER, negative=True).times == 2
    assert control.sight(EDIT_TRAINER, negative=True).times == control.sight(PLUS_TRAINER, negative=False).times == 1


def test_the_template_s_head_has_the_rows_that_are_left_out(engine):
    handle = _handle(EDIT)
    asked = wanted(engine, handle)
    with engine.on_device(asked, "text_encoder", SilentObserver()) as encoder:
        head = encoder.tokenizer(EDIT_TEMPLATE.split("{}", maxsplit=1)[0], None)  # pyright: ignore
    assert len(head) == EDIT_TEMPLATE_TOKENS


# --- recipes and jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipes", [EDIT_RECIPES, PLUS_RECIPES, RECIPES_2511])
def test_times_follow_each_other_and_every_value_has_a_source(recipes):
    reference, *trainer = recipes
    assert reference.era is None
    for newer, older in pairwise(trainer):
        assert older.era.first < older.era.last < newer.era.first
    for recipe in recipes:
        assert {"size", "squash", "seen_pixels", "cfg_norm", "cast_rope", "control_images"} <= recipe.sources.keys()
    assert [recipe.grid_positions for recipe in trainer[:4]] == [False, False, True, True][: len(trainer)]
    assert [recipe.seen_swapped for recipe in trainer[:4]] == [False, False, False, True][: len(trainer)]
    assert [recipe.tiled_by_low_vram for recipe in trainer[:3]] == [True, False, False]


def test_2509_began_with_the_cfg_norm():
    assert [recipe.name for recipe in PLUS_RECIPES if recipe.cfg_norm] == [
        "reference pipeline", "trainer preview until 2025-09-30",
    ]  # fmt: skip
    # of 2511 there is no such time
    assert [recipe.name for recipe in RECIPES_2511 if recipe.cfg_norm] == ["reference pipeline"]


ITEM = {"prompt": "a", "neg": ""}


@pytest.mark.parametrize(
    ("model", "item", "section", "images", "options"),
    [
        (PLUS, {"ctrl_img_1": "a", "ctrl_img_2": "b"}, {}, ("a", "b"), {}),
        (PLUS, {"ctrl_img": "a"}, {}, ("a",), {"first_image_twice": True}),
        (PLUS, {"ctrl_img": "a", "ctrl_img_2": "b"}, {}, ("a", "b"), {"first_image_twice": True}),
        # as a flag of the prompt it comes after ctrl_img_1 was filled
        (PLUS, {"prompt": "a --ctrl_img c"}, {}, ("c",), {}),
        (PLUS, {"ctrl_img_1": "a"}, {"do_cfg_norm": True}, ("a",), {"do_cfg_norm": True}),
        # an item's own is not used
        (PLUS, {"ctrl_img_1": "a", "do_cfg_norm": True}, {}, ("a",), {}),
        (EDIT, {"ctrl_img": "a"}, {"do_cfg_norm": True}, ("a",), {}),
    ],
)
def test_what_a_job_s_sample_says(model, item, section, images, options):
    recipe = find_model(model).recipes["trainer preview"]
    found = read_section({"samples": [ITEM | item], **section}, None)
    (sample,) = job_samples(found, recipe.control_images, recipe.options)
    assert sample.control_images == images and not sample.problem
    assert {name: value for name, value in sample.recipe_options.values if value} == options


def test_two_pictures_for_the_text_and_one_for_the_autoencoder_are_told():
    recipe = find_model(PLUS).recipes["trainer preview"]
    found = read_section({"samples": [ITEM | {"ctrl_img": "a", "ctrl_img_1": "b"}]}, None)
    (sample,) = job_samples(found, recipe.control_images, recipe.options)
    assert "it has both ctrl_img and another ctrl_img_1" in sample.problem.replace("It", "it")


@pytest.mark.parametrize(
    ("arch", "base", "expected"),
    [
        ("qwen_image_edit", "Qwen/Qwen-Image-Edit", "qwen_image_edit"),
        ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_plus"),
        ("qwen_image_edit_plus:2511", "Qwen/Qwen-Image-Edit-2511", "qwen_image_edit_plus:2511"),
        # AI Toolkit drops the tag
        ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2511", "qwen_image_edit_plus:2511"),
    ],
)
def test_a_job_s_model_is_found(arch, base, expected):
    model, _ = read_model({"model": {"arch": arch, "name_or_path": base}, "train": {"dtype": "bf16"}}, "")
    found = facts_of(model)
    assert found is not None and found.id == expected
