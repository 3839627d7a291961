"""AI Toolkit's own Krea 2 previews, recorded on a tiny checkpoint, by stages; its schedules and eras."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import krea2 as tiny
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.krea2 import loop
from comfyui_aitk.pipelines.models.krea2.attention import GroupedAttention
from comfyui_aitk.pipelines.models.krea2.network import Krea2Transformer, ReferenceMemory, latents_of, tokens_of
from comfyui_aitk.pipelines.models.krea2.recipes import (
    AFTER,
    BEFORE,
    DROPPED,
    RECIPES,
    STATES,
    TRAINER,
    Krea2Recipe,
)
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen
from comfyui_aitk.pipelines.parts.language_model.qwen3_vl_pixels import LIMITS, patches_of
from comfyui_aitk.pipelines.parts.language_model.qwen3_vl_seeing import PatchEmbedding
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.pictures.sizes import Size, snap
from comfyui_aitk.pipelines.run.start import seeded
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from cpu_kernels import NOISE
from diffusers import Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from diffusers.models.attention_dispatch import AttentionBackendName
from rendering import denoising, job_of, noise_image, wanted
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "krea2"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
MODEL = find_model("krea2")
# largest absolute differences on another CPU, from the recordings' own page; measured here: 2e-6, 3e-6
EMBEDS, PREDICTION = 1e-4, 5e-5
# the recorded checkpoint in the keys of diffusers' class
FOLDER = {
    "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "in_channels": 64, "intermediate_size": 128,
    "norm_eps": 1e-5, "num_attention_heads": 3, "num_key_value_heads": 1, "num_layers": 2,
    "num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2, "num_text_layers": 12, "rope_theta": 1000.0,
    "text_hidden_dim": 16, "text_intermediate_size": 128, "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2, "timestep_embed_dim": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> PipelineHandle:
    return PipelineHandle("krea2", Checkpoint.open(GOLDEN / "base", "base", MODEL.files), "float32")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] in ("txt2img", "size")])
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
        assert bool(embedding.mask.all())
        assert _distance(embedding.embeds[0], embeds[case["embeds"][text]]) < EMBEDS

    noise = asked.model.noise(seeded("cpu", case["seed"]), job)
    assert _distance(noise[:, :, 0], recorded["initial_noise"]) <= NOISE
    schedule = asked.model.schedule(job, case["steps"])
    assert schedule.sigmas.tolist() == recorded["sigmas"].tolist()
    level = float(schedule.sigmas[0])
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        found = loop.predict(transformer, noise[:, :, 0], level, denoising(job, noise, schedule, conditioning))
    assert _distance(found.cond, recorded["pred_cond_step0"]) < PREDICTION
    assert (found.uncond is None) == ("pred_uncond_step0" not in recorded)
    if found.uncond is not None:
        assert _distance(found.uncond, recorded["pred_uncond_step0"]) < PREDICTION
    assert _distance(found.guided, recorded["pred_step0"]) < PREDICTION


# ---- schedules and eras ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "mu", "first"), [(256, 0.5, 1.0), (1024, 0.90625, 1.0), (1280, 1.15, 1.0), (2048, 2.20625, 1.0)]
)
def test_the_shift_grows_with_the_size_without_an_end(side, mu, first):
    assert loop.mu_of(TRAINER, Size(side, side)) == pytest.approx(mu)
    assert float(loop.sigmas(loop.mu_of(TRAINER, Size(side, side)), 9)[0]) == first


def test_levels_are_ai_toolkits_to_the_bit():
    """AI Toolkit's own list at 1024 x 1024, and the first level of some sizes, which is not 1."""
    levels = loop.sigmas(loop.mu_of(TRAINER, Size(1024, 1024)), 9).tolist()
    assert levels[:4] == pytest.approx([1.0, 0.9519235, 0.8965080, 0.8319342], abs=1e-7)
    assert levels[-2:] == pytest.approx([0.2362786, 0.0], abs=1e-7)
    # 32 and 45 tokens
    for size in (Size(128, 64), Size(144, 80)):
        assert loop.sigmas(loop.mu_of(TRAINER, size), 4)[0].item() == 1 - 2**-24


def test_a_fixed_shift_is_the_same_for_every_size():
    fixed = TRAINER.configured(Chosen.of({"schedule_mu": 1.15}), MODEL.recipe_options)
    assert loop.mu_of(fixed, Size(64, 64)) == loop.mu_of(fixed, Size(2048, 2048)) == 1.15
    assert TRAINER.configured(Chosen(), MODEL.recipe_options) == TRAINER


ERAS = {
    "reference pipeline": ((0.0, 0.0, 0.25, 3.0), True, True),
    "trainer preview": ((0.0, 0.0, 0.25, 3.0), True, True),
    "trainer preview until 2026-07-12": ((0.0, 0.0, 0.25, 3.0), False, True),
    "trainer preview until 2026-07-07": ((0.0, 1.0, 1.25, 4.0), False, True),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_eras_differ_as_the_trainer_did(recipe: Krea2Recipe):
    factors, plain, tiles = ERAS[recipe.name]
    assert tuple(loop.guidance_factor(recipe, scale) for scale in (0, 1, 1.25, 4)) == factors
    assert (bool(recipe.plain), recipe.tiles) == (plain, tiles)


def test_the_eras_follow_each_other_without_a_gap():
    eras = [recipe.era for recipe in RECIPES if recipe.era is not None]
    assert eras[0].last is None
    for later, earlier in pairwise(eras):
        assert earlier.last is not None
        assert earlier.last < later.first
    assert set(ERAS) == {recipe.name for recipe in RECIPES}


@torch.no_grad()
def test_what_the_trainer_left_plain_changed_with_its_eras(golden, engine):
    """Until 12 July 2026 every Linear was quantised; since then 8 embedders and the last layer are not."""
    options = type(golden.options)("qfloat8")
    quantised = PipelineHandle("krea2", golden.checkpoint, "float32", options)
    found = {}
    for recipe in ("trainer preview", "trainer preview until 2026-07-12"):
        with engine.on_device(wanted(engine, quantised, recipe), "transformer", SilentObserver()) as transformer:
            linear = [module for module in transformer.modules() if isinstance(module, torch.nn.Linear)]
            found[recipe] = (sum(hasattr(layer, "weight_qtype") for layer in linear), len(linear))
    # counted in AI Toolkit: all but 8
    assert found == {"trainer preview": (48, 56), "trainer preview until 2026-07-12": (56, 56)}


@pytest.mark.parametrize("sides", [(64, 64), (96, 64)])
@torch.no_grad()
def test_diffusers_has_the_same_network_in_float32(golden, engine, sides):
    """Its own class, on the checkpoint in its own names: another order of roundings, measured 5e-7."""
    asked = wanted(engine, golden)
    theirs = Krea2Transformer2DModel(**FOLDER)
    state = convert_krea2_transformer_checkpoint_to_diffusers(load_file(GOLDEN / "base" / "raw.safetensors"))
    theirs.load_state_dict(state)
    text = load_file(GOLDEN / "embeds.safetensors")["text0.embeds"][None]
    latents = torch.randn(1, 16, sides[1] // 8, sides[0] // 8, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.75])
    rows, columns = sides[1] // 16, sides[0] // 16
    positions = torch.zeros(text.shape[1] + rows * columns, 3)
    positions[text.shape[1] :, 1:] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    expected = theirs(
        hidden_states=tokens_of(latents[0])[None], encoder_hidden_states=text.unflatten(-1, (12, -1)), timestep=time,
        position_ids=positions,
    ).sample  # fmt: skip
    with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
        found = transformer(latents, time, text)
    assert _distance(found, latents_of(expected[0], rows)[None]) < 1e-5


# ---- network --------------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Latents, time, text and two references for the recorded checkpoint."""
    generator = torch.Generator().manual_seed(1)
    latents, *references = (
        torch.randn(16, *sides, generator=generator) for sides in ((8, 12), (6, 10), (8, 4))
    )  # fmt: skip
    text = load_file(GOLDEN / "embeds.safetensors")["text0.embeds"][None]
    return latents[None], torch.tensor([0.75]), text, references


@torch.no_grad()
def test_a_kernel_without_masks_gets_neither_mask_nor_padding(golden, engine, inputs):
    latents, time, text, references = inputs
    with engine.on_device(wanted(engine, golden), "transformer", SilentObserver()) as transformer:
        found = []
        for backend in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH):
            for module in transformer.modules():
                if isinstance(module, GroupedAttention):
                    module.processor._attention_backend = backend
            found.append(transformer(latents, time, text, references))
        for module in transformer.modules():
            if isinstance(module, GroupedAttention):
                module.processor._attention_backend = None
    # measured 1e-6; padding that is seen costs 1e-2
    assert 0 < _distance(*found) < 1e-5


@torch.no_grad()
def test_isolated_references_are_remembered_and_others_are_not(golden, engine, inputs):
    latents, time, text, references = inputs
    other = load_file(GOLDEN / "embeds.safetensors")["text2.embeds"][None]
    later = torch.tensor([0.25])
    with engine.on_device(wanted(engine, golden), "transformer", SilentObserver()) as transformer:
        memory = ReferenceMemory()
        first = transformer(latents, time, text, references, isolated=True, memory=memory)
        assert torch.equal(first, transformer(latents, time, text, references, isolated=True))
        assert len(memory.pairs) == 2
        kept = transformer(latents, later, other, references, isolated=True, memory=memory)
        whole = transformer(latents, later, other, references, isolated=True)
        seen = transformer(latents, later, other, references)
        bare = transformer(latents, later, other)
    # the same function in another order of sums
    assert _distance(kept, whole) < 1e-5
    assert min(_distance(kept, seen), _distance(kept, bare), _distance(seen, bare)) > 1e-3


def test_a_head_that_no_axes_fill_is_refused():
    with pytest.raises(FileError, match=r"3 heads of 40 channels leave .* for the axes of positions"):
        Krea2Transformer(width=40, heads=3, kv_heads=1, layers=1, mlp=8, text_width=16, text_heads=1, text_kv_heads=1)


# ---- text encoder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Whose text encoder has the real one's kinds of positions."""
    return tiny.make_checkpoint(tmp_path_factory.mktemp("krea2") / "tiny")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pictures", [0, 2])
@torch.no_grad()
def test_texts_are_encoded_by_transformers_whole_model_to_the_bit(folder, engine, dtype, pictures):
    """Which has all 36 layers, and finds out itself where pictures stand."""
    facts = find_model("krea2:o_edit")
    handle = PipelineHandle(facts.id, Checkpoint.open(folder, "tiny", facts.files), dtype)
    case = {"guidance": 1.0, "prompt": "a red fox, morning light", "negative_prompt": ""}
    images = tuple(Picture.of(noise_image(96 + 64 * n, 64, seed=n)) for n in range(pictures))
    job = job_of(handle, case, Size(64, 64), references=images)
    asked = wanted(engine, handle)
    (text,) = asked.model.texts(job)
    (found,) = engine.embeddings(asked, [text], SilentObserver())

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    whole = Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype)).eval()
    # AI Toolkit replaces the convolution by the same product
    whole.model.visual.patch_embed = PatchEmbedding(whole.model.visual.patch_embed.proj)
    shown, inputs = text.text, {}
    if pictures:
        seen = patches_of(images, text.settings.sight, LIMITS, torch.float32, "cpu")
        rounded = patches_of(images, text.settings.sight, LIMITS, getattr(torch, dtype), "cpu")
        assert torch.equal(seen.grids, rounded.grids)
        for count in seen.tokens:
            shown = shown.replace("<|vision_start|><|image_pad|>", "<|vision_start|>" + "<|here|>" * count, 1)
        shown = shown.replace("<|here|>", "<|image_pad|>")
        inputs = {"pixel_values": rounded.values.to(getattr(torch, dtype)), "image_grid_thw": rounded.grids}
    ids = torch.tensor([tokenizer(BEFORE + shown).input_ids + tokenizer(AFTER).input_ids])
    if pictures:
        inputs["mm_token_type_ids"] = (ids == whole.config.image_token_id).int()
    states = whole(ids, attention_mask=torch.ones_like(ids).bool(), output_hidden_states=True, **inputs).hidden_states
    expected = torch.stack([states[index] for index in STATES], dim=2)[:, DROPPED:].flatten(2)
    assert torch.equal(found.embeds, expected)


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max())
