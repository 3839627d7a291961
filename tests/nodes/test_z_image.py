"""Z-Image through the nodes: every layout of its files, every spelling of its LoRAs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import z_image as tiny
from comfyui_aitk.headless.tiny.containers import write_scaled_float8
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import put_into_cache, render
from safetensors.torch import load_file, save_file

PARTS = {"text_encoder": "qwen_3_4b.safetensors", "vae": "ae.safetensors"}
TURBO = "Tongyi-MAI/Z-Image-Turbo"


@pytest.fixture(scope="session")
def z_image_models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout. Read only."""
    folder = tmp_path_factory.mktemp("z-image")
    for kind in ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras"):
        (folder / kind).mkdir()
    # three heads: every row fills GGUF's blocks
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny", heads=3)
    transformer, encoder, vae = tiny.write_single_files(folder, checkpoint)
    for path, kind in ((transformer, "diffusion_models"), (encoder, "text_encoders"), (vae, "vae")):
        path.rename(folder / kind / path.name)
    models = folder / "diffusion_models"
    tiny.write_single_transformer(models / "prefixed.safetensors", checkpoint, "model.diffusion_model.")
    tiny.write_single_transformer(models / "odd.safetensors", checkpoint, flat_pad_tokens=True, norm_final=True)
    write_scaled_float8(models / "float8.safetensors", models / transformer.name, "new")
    tiny.write_gguf(models / "bf16.gguf", checkpoint, "BF16", flat_pad_tokens=True)
    tiny.write_gguf(models / "q8.gguf", checkpoint, "Q8_0")
    tiny.write_all_in_one(folder / "checkpoints" / "all.safetensors", checkpoint)
    tiny.make_lora(folder / "loras" / "lora.safetensors", checkpoint)
    tiny.make_lokr(folder / "loras" / "lokr.safetensors", checkpoint)
    return folder


@pytest.fixture
def z_image(host, z_image_models: Path, hub_cache: Path) -> PlainHost:
    plain = PlainHost(z_image_models, host.input, host.output, "cpu")
    use_host(plain)
    own = z_image_models / "diffusers" / "tiny" / "tokenizer"
    put_into_cache(hub_cache, TURBO, {f"tokenizer/{file.name}": file for file in own.iterdir()})
    return plain


def _run(load: dict, **change) -> tuple:
    return render({"model": "zimage", **load}, **{"width": 64, "height": 64} | change)


SINGLE = ("z_image_turbo_bf16.safetensors", "prefixed.safetensors", "odd.safetensors", "bf16.gguf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_picture_from_every_layout(z_image, dtype):
    expected = _run({"weights": "tiny", "dtype": dtype})
    for file in SINGLE:
        found = _run({"weights": file, "dtype": dtype, **PARTS})
        assert torch.equal(found[0], expected[0]), file
        assert torch.equal(found[4]["samples"], expected[4]["samples"]), file
    assert torch.equal(_run({"weights": "all.safetensors", "dtype": dtype})[0], expected[0])


@pytest.mark.parametrize("file", ["float8.safetensors", "q8.gguf"])
def test_packed_files_are_near_and_take_a_lora_live(z_image, file):
    expected = _run({"weights": "tiny"})[4]["samples"]
    found = _run({"weights": file, **PARTS})[4]["samples"]
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    lora = _run({"weights": file, **PARTS}, lora={"lora_name": "lora.safetensors"})
    (entry,) = json.loads(lora[6])["loras"]
    assert entry["application"] == "live"
    assert not torch.equal(lora[4]["samples"], found)


def test_three_ids_are_one_model_with_other_repositories(z_image, z_image_models, hub_cache):
    expected = _run({"weights": "tiny"})
    for model in ("zimage:turbo", "zimage:deturbo"):
        assert torch.equal(render({"model": model, "weights": "tiny"}, width=64, height=64)[0], expected[0])
    whole = z_image_models / "diffusers" / "tiny"
    files = {str(file.relative_to(whole)): file for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(AITKError, match="'Tongyi-MAI/Z-Image' is not"):
        _run({"weights": "default"})
    put_into_cache(hub_cache, "Tongyi-MAI/Z-Image", files)
    assert torch.equal(_run({"weights": "default"})[0], expected[0])


def test_de_turbo_takes_only_its_transformer_from_its_own_repository(host, z_image_models, hub_cache):
    use_host(PlainHost(z_image_models, host.input, host.output, "cpu"))
    whole = z_image_models / "diffusers" / "tiny"
    files = {str(file.relative_to(whole)): file for file in whole.rglob("*") if file.is_file()}
    own = {name: file for name, file in files.items() if name.startswith("transformer/")}
    load = {"model": "zimage:deturbo", "weights": "default"}
    put_into_cache(hub_cache, "ostris/Z-Image-De-Turbo", own)
    with pytest.raises(AITKError, match="'Tongyi-MAI/Z-Image-Turbo' is not"):
        render(load)
    put_into_cache(hub_cache, TURBO, {name: file for name, file in files.items() if name not in own})
    found = render(load, width=64, height=64)
    assert torch.equal(found[0], _run({"weights": "tiny"})[0])
    assert json.loads(found[6])["model"]["weights"]["transformer"].startswith("ostris/Z-Image-De-Turbo@")


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def _underscored(key: str) -> str:
    module, _, suffix = key.removeprefix("diffusion_model.").rpartition(".lora_")
    return f"{module.replace('.', '_')}.lora_{suffix}"


def _kohya(key: str, prefix: str) -> str:
    return prefix + _underscored(key).replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def _original(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Queries, keys and values as one LoRA of three times the rank, as for the fused weight."""
    found = {}
    for key, value in tensors.items():
        module, _, suffix = key.removeprefix("diffusion_model.").rpartition(".lora_")
        if module.endswith((".to_k", ".to_v")):
            continue
        if module.endswith(".to_q"):
            three = [tensors[key.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            value = torch.cat(three) if suffix == "A.weight" else torch.block_diag(*three)
        name = module.replace("to_q", "qkv").replace("to_out.0", "out")
        found[f"{prefix}{name}.lora_{suffix}"] = value
    return found


def _renamed(rename):
    return lambda tensors: {rename(key): value for key, value in tensors.items()}


SPELLINGS = {
    "diffusers": _renamed(lambda key: key.replace("diffusion_model.", "transformer.")),
    "PEFT": _renamed(lambda key: key.replace("diffusion_model.", "base_model.model.")),
    "PEFT, its adapter named": _renamed(
        lambda key: key.replace("diffusion_model.", "base_model.model.").replace(".weight", ".default.weight")
    ),
    "nothing in front": _renamed(lambda key: key.removeprefix("diffusion_model.")),
    "all in one": _renamed(lambda key: f"model.{key}"),
    "nested": _renamed(lambda key: f"transformer.{key}"),
    "musubi-tuner": _renamed(lambda key: _kohya(key, "lora_unet_")),
    "a doubled separator": _renamed(lambda key: _kohya(key, "lora_unet__")),
    "OneTrainer, old": _renamed(
        lambda key: key.replace("diffusion_model.", "transformer.").replace("_A.", "_down.").replace("_B.", "_up.")
    ),
    "ComfyUI's fused names": lambda tensors: _original(tensors, "diffusion_model."),
    "fused, nothing in front": lambda tensors: _original(tensors, ""),
}


@pytest.mark.parametrize("application", ["merged", "live"])
def test_every_spelling_of_a_lora_is_the_same_change(z_image, z_image_models, tmp_path, application):
    whole = load_file(z_image_models / "loras" / "lora.safetensors")
    models = tmp_path / "models"
    models.mkdir()
    for kind in ("diffusers", "diffusion_models", "text_encoders", "vae"):
        (models / kind).symlink_to(z_image_models / kind)
    (models / "loras").mkdir()
    save_file(whole, models / "loras" / "own.safetensors")
    for name, spell in SPELLINGS.items():
        tensors = {key: value.contiguous() for key, value in spell(whole).items()}
        save_file(tensors, models / "loras" / f"{name}.safetensors")
    use_host(PlainHost(models, z_image.input, z_image.output, "cpu"))
    lora = {"application": application}
    expected = _run({"weights": "tiny"}, lora={"lora_name": "own.safetensors", **lora})[4]["samples"]
    assert not torch.equal(expected, _run({"weights": "tiny"})[4]["samples"])
    loaded = engine().counters.parts_loaded
    for name in SPELLINGS:
        found = _run({"weights": "tiny"}, lora={"lora_name": f"{name}.safetensors", **lora})[4]["samples"]
        # a fused pair sums in another order: measured 4e-5, where queries and keys swapped cost 0.5
        assert (found - expected).abs().max() < 2e-4, name
    assert engine().counters.parts_loaded == loaded


def test_lokr_on_single_files_and_strength_reloads_nothing(z_image):
    load = {"weights": SINGLE[0], **PARTS}
    base = _run(load)[4]["samples"]
    first = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 1.0})[4]["samples"]
    loaded, encoded = engine().counters.parts_loaded, engine().counters.texts_encoded
    half = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.5})[4]["samples"]
    assert 0 < (half - base).norm() < (first - base).norm()
    assert torch.equal(_run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.0})[4]["samples"], base)
    assert (engine().counters.parts_loaded, engine().counters.texts_encoded) == (loaded, encoded)


# ---- latents, recipes, errors ---------------------------------------------------------------------------------------


def test_latents_go_in_and_come_out(z_image):
    result = _run({"weights": "tiny"}, steps=4)
    pipeline, latent = result[1], result[4]["samples"]
    assert latent.shape == (1, 16, 8, 8)

    def again(denoise: float) -> torch.Tensor:
        request = SampleRequest("trainer preview", "a dog", steps=2, seed=9, denoise=denoise, latent=latent)
        return sample(engine(), pipeline, request, SilentObserver()).latent

    little, half, whole = ((again(denoise) - latent).norm() for denoise in (0.05, 0.5, 1.0))
    assert little < half < whole


def test_the_recipes_differ_and_the_report_says_which(z_image):
    trainer, found = "trainer preview", {}
    names = ("reference pipeline", trainer, f"{trainer} until 2026-07-14", f"{trainer} until 2026-05-27")
    for recipe in names:
        result = _run({"weights": "tiny", "dtype": "bfloat16"}, recipe=recipe, steps=3)
        report = json.loads(result[6])
        found[recipe] = result[4]["samples"]
        assert report["recipe"] == recipe
        assert ("era" in report) == recipe.startswith("trainer")
    for index, recipe in enumerate(names):
        assert not any(torch.equal(found[recipe], found[other]) for other in names[:index])
    report = json.loads(_run({"weights": "tiny"}, recipe=names[2])[6])
    assert report["era"] == {"first": "2026-07-13", "last": "2026-07-14", "version": "0.10.24"}
    assert report["schedule"]["last_step"] == "changes nothing"


ERRORS = [
    ({"weights": "tiny"}, {"system_prompt": "Draw."}, "Z-Image takes no system prompt"),
    ({"weights": "tiny"}, {"recipe": "sd-scripts"}, "Z-Image has no recipe 'sd-scripts'"),
    ({"weights": "tiny"}, {"width": 8208}, "width is 8,208: this model renders at most 8,192"),
    ({"weights": SINGLE[0]}, {}, "holds only the transformer of Z-Image. Choose a file for text_encoder and vae"),
    ({"weights": "tiny", "model": "lumina2"}, {}, "holds a ZImageTransformer2DModel.*Set model to zimage"),
    (
        {"weights": SINGLE[0], "model": "lumina2", **PARTS},
        {},
        "'qwen_3_4b.safetensors' holds no part of Lumina Image 2.0",
    ),
]


@pytest.mark.parametrize(("load", "sample", "message"), ERRORS)
def test_what_is_refused(z_image, load, sample, message):
    with pytest.raises(AITKError, match=message):
        _run(load, **sample)


# ---- training adapter -----------------------------------------------------------------------------------------------


def _adapted(*nodes: tuple[str, dict], weights: str = "tiny", model: str = "zimage:turbo", **load):
    """The handle behind nodes in a row."""
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(model=model, weights=weights, dtype="bfloat16", **load)
    for name, inputs in nodes:
        cls = NODE_CLASS_MAPPINGS[name]
        pipeline = getattr(cls(), cls.FUNCTION)(pipeline=pipeline, **inputs)[0]
    return pipeline


ADAPTER = ("AITKTrainingAdapter", {"adapter_name": "lora.safetensors"})
LORA = ("ApplyAITKLoRA", {"lora_name": "lokr.safetensors", "strength": 0.7})


def test_an_adapter_is_first_whatever_the_order_of_the_nodes_and_leaves_no_trace(z_image):
    request = SampleRequest("trainer preview", "a fox", width=64, height=64, steps=2)

    def latent(pipeline) -> torch.Tensor:
        return sample(engine(), pipeline, request, SilentObserver()).latent

    plain, with_lora = latent(_adapted()), latent(_adapted(LORA))
    adapted = latent(_adapted(ADAPTER))
    # the merge's rounding alone, and not the adapter: that by itself is another picture
    alone = latent(_adapted(("ApplyAITKLoRA", {"lora_name": "lora.safetensors", "strength": 1.0})))
    assert 0 < (adapted - plain).norm() < (alone - plain).norm() / 5
    first, second = latent(_adapted(ADAPTER, LORA)), latent(_adapted(LORA, ADAPTER))
    assert torch.equal(first, second)
    assert not torch.equal(first, with_lora)
    # a merge is undone to the adapted weights, not to the plain ones
    assert torch.equal(latent(_adapted(ADAPTER)), adapted)
    assert torch.equal(latent(_adapted()), plain)


@pytest.mark.parametrize(
    ("nodes", "load", "message"),
    [
        ((ADAPTER,), {"model": "zimage"}, "AI Toolkit trains Z-Image without a training adapter"),
        ((ADAPTER, ADAPTER), {}, "'tiny [+] lora.safetensors' has a training adapter already"),
        (
            (("AITKTrainingAdapter", {"adapter_name": "lokr.safetensors"}),),
            {},
            "'lokr.safetensors' is LoKr; a training adapter is a LoRA",
        ),
        ((ADAPTER,), {"weights": "q8.gguf", **PARTS}, "'q8.gguf' is quantised .* Choose an unquantised file"),
        (
            (("AITKTrainingAdapter", {"adapter_name": "../lora.safetensors"}),),
            {},
            "absolute paths and '..' are not allowed",
        ),
    ],
)
def test_adapters_that_are_refused(z_image, nodes, load, message):
    with pytest.raises(AITKError, match=message):
        _adapted(*nodes, **load)
