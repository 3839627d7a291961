"""Krea 2 through the nodes: every layout of its files, every spelling of its LoRAs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import krea2 as tiny
from comfyui_aitk.headless.tiny.containers import write_gguf_text_encoder, write_scaled_float8
from comfyui_aitk.headless.tiny.files import read_part, write_tensors
from comfyui_aitk.headless.tiny.qwen_image_vae import write_wan_vae
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.models.krea2.names import released_module
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import put_into_cache, render
from safetensors.torch import load_file, save_file

ENCODER, VAE, SINGLE = "qwen3vl_4b_bf16.safetensors", "qwen_image_vae.safetensors", "krea2_raw_bf16.safetensors"
PARTS = {"text_encoder": ENCODER, "vae": VAE}
QWEN = "Qwen/Qwen3-VL-4B-Instruct"


@pytest.fixture(scope="session")
def krea2_models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout. Read only."""
    folder = tmp_path_factory.mktemp("krea2")
    checkpoint = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    layout = folder / "diffusers" / "diffusers"
    shutil.copytree(checkpoint, layout, ignore=shutil.ignore_patterns(tiny.RAW))
    tiny.write_diffusers_transformer(layout, checkpoint)
    models, encoders = folder / "diffusion_models", folder / "text_encoders"
    tiny.write_single_transformer(models / SINGLE, checkpoint)
    tiny.write_single_transformer(models / "prefixed.safetensors", checkpoint, "model.diffusion_model.")
    tiny.write_single_transformer(models / "stray.safetensors", checkpoint, stray=True)
    write_tensors(models / "theirs.safetensors", tiny.diffusers_transformer(tiny.released(checkpoint)), {})
    write_scaled_float8(models / "float8.safetensors", models / SINGLE, "new")
    tiny.write_gguf(models / "bf16.gguf", checkpoint, "BF16")
    tiny.write_gguf(models / "q8.gguf", checkpoint, "Q8_0")
    tiny.write_single_text_encoder(encoders / ENCODER, checkpoint)
    write_tensors(encoders / "hub.safetensors", read_part(checkpoint, "text_encoder"), {})
    write_scaled_float8(encoders / "float8.safetensors", encoders / ENCODER, "new")
    write_gguf_text_encoder(encoders / "bf16.gguf", tiny.language_model(checkpoint), "BF16", "qwen3vl")
    write_wan_vae(folder / "vae" / VAE, checkpoint)
    write_tensors(folder / "vae" / "theirs.safetensors", read_part(checkpoint, "vae"), {})
    tiny.write_all_in_one(folder / "checkpoints" / "all.safetensors", checkpoint)
    tiny.make_lora(folder / "loras" / "lora.safetensors", checkpoint, transformer_only=False)
    tiny.make_lokr(folder / "loras" / "lokr.safetensors", checkpoint)
    return folder


@pytest.fixture
def krea2(host, krea2_models: Path, hub_cache: Path) -> PlainHost:
    plain = PlainHost(krea2_models, host.input, host.output, "cpu")
    use_host(plain)
    own = krea2_models / "diffusers" / "tiny" / "tokenizer"
    put_into_cache(hub_cache, QWEN, {file.name: file for file in own.iterdir()})
    return plain


def _run(load: dict, **change) -> tuple:
    return render({"model": "krea2", **load}, **{"width": 64, "height": 64} | change)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_picture_from_every_layout(krea2, dtype):
    expected = _run({"weights": "tiny", "dtype": dtype})
    for file in (SINGLE, "prefixed.safetensors", "stray.safetensors", "theirs.safetensors", "bf16.gguf"):
        found = _run({"weights": file, "dtype": dtype, **PARTS})
        assert torch.equal(found[0], expected[0]), file
        assert torch.equal(found[4]["samples"], expected[4]["samples"]), file
    for load in (
        {"weights": "diffusers"},
        {"weights": "all.safetensors"},
        {"weights": SINGLE, **PARTS, "text_encoder": "hub.safetensors"},
        {"weights": SINGLE, **PARTS, "text_encoder": "bf16.gguf"},
        {"weights": "tiny", "vae": "theirs.safetensors"},
    ):
        assert torch.equal(_run({**load, "dtype": dtype})[0], expected[0]), load


@pytest.mark.parametrize(
    "load",
    [
        {"weights": "float8.safetensors"},
        {"weights": "q8.gguf"},
        {"weights": SINGLE, "text_encoder": "float8.safetensors"},
    ],
)
def test_packed_files_are_near_and_take_a_lora(krea2, load):
    expected = _run({"weights": "tiny"})[4]["samples"]
    found = _run({**PARTS, **load})[4]["samples"]
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    lora = _run({**PARTS, **load}, lora={"lora_name": "lora.safetensors"})
    (entry,) = json.loads(lora[6])["loras"]
    assert entry["application"] == ("live" if "text_encoder" not in load else "merged")
    assert not torch.equal(lora[4]["samples"], found)


def test_the_distilled_form_is_one_model_with_another_repository(krea2, krea2_models, hub_cache):
    expected = _run({"weights": "tiny"})
    assert torch.equal(render({"model": "krea2:turbo", "weights": "tiny"}, width=64, height=64)[0], expected[0])
    whole = krea2_models / "diffusers" / "tiny"
    encoder = [*(whole / "text_encoder").iterdir(), *(whole / "tokenizer").iterdir()]
    for repository, files in {
        "krea/Krea-2-Turbo": {"turbo.safetensors": whole / tiny.RAW},
        QWEN: {file.name: file for file in encoder},
        "Qwen/Qwen-Image": {f"vae/{file.name}": file for file in (whole / "vae").iterdir()},
    }.items():
        with pytest.raises(AITKError, match=f"'{repository}' is not"):
            render({"model": "krea2:turbo", "weights": "default"})
        # of the encoder's the tokenizer is there
        shutil.rmtree(hub_cache / f"models--{repository.replace('/', '--')}", ignore_errors=True)
        put_into_cache(hub_cache, repository, files)
    found = render({"model": "krea2:turbo", "weights": "default"}, width=64, height=64)
    assert torch.equal(found[0], expected[0])
    assert json.loads(found[6])["model"]["weights"]["transformer"].startswith("krea/Krea-2-Turbo@")


# ---- LoRAs ----------------------------------------------------------------------------------------------------------


def _theirs(key: str, prefix: str) -> str:
    """AI Toolkit's key with diffusers' names of the modules."""
    module, _, suffix = key.removeprefix("diffusion_model.").rpartition(".lora_")
    for name in DIFFUSERS:
        if released_module(name) == module:
            return f"{prefix}{name}.lora_{suffix}"
    raise AssertionError(key)


DIFFUSERS = [
    *("img_in", "time_embed.linear_1", "time_embed.linear_2", "time_mod_proj", "txt_in.linear_1", "txt_in.linear_2"),
    *("text_fusion.projector", "final_layer.linear"),
    *(
        f"{block}.{index}.{inside}"
        for block in ("transformer_blocks", "text_fusion.layerwise_blocks", "text_fusion.refiner_blocks")
        for index in range(2)
        for inside in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_gate", "ff.gate", "ff.up",
                       "ff.down")
    ),
]  # fmt: skip


def _kohya(key: str, prefix: str) -> str:
    module, _, suffix = key.removeprefix("diffusion_model.").rpartition(".lora_")
    way = {"A.weight": "down", "B.weight": "up"}[suffix]
    return f"{prefix}{module.replace('.', '_')}.lora_{way}.weight"


def _fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values as one of three times the rank, under a name that no layout has; with an alpha."""
    found = {}
    for key, value in tensors.items():
        name, _, suffix = _theirs(key, "").rpartition(".lora_")
        if name.endswith((".to_k", ".to_v")):
            continue
        if name.endswith(".to_q"):
            three = [tensors[key.replace("wq", part)] for part in ("wq", "wk", "wv")]
            value = torch.cat(three) if suffix == "A.weight" else torch.block_diag(*three)
            name = name.replace("to_q", "to_qkv")
        found[f"lycoris_{name.replace('.', '_')}.lora_{'down' if suffix[0] == 'A' else 'up'}.weight"] = value
    return found


def _renamed(rename):
    return lambda tensors: {rename(key): value for key, value in tensors.items()}


def _with_alphas(spell):
    """Alpha is the rank in each."""

    def spelled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = spell(tensors)
        ranks = {key.rpartition(".lora_")[0]: len(value) for key, value in found.items() if "lora_down" in key}
        return found | {f"{key}.alpha": torch.tensor(float(rank)) for key, rank in ranks.items()}

    return spelled


SPELLINGS = {
    "diffusers": _renamed(lambda key: _theirs(key, "transformer.")),
    "diffusers' names under ComfyUI's prefix": _renamed(lambda key: _theirs(key, "diffusion_model.")),
    "PEFT": _renamed(lambda key: key.replace("diffusion_model.", "base_model.model.")),
    "PEFT, diffusers' names": _renamed(lambda key: _theirs(key, "base_model.model.transformer.")),
    "PEFT, its adapter named": _renamed(
        lambda key: key.replace("diffusion_model.", "base_model.model.").replace(".weight", ".default.weight")
    ),
    "nothing in front": _renamed(lambda key: key.removeprefix("diffusion_model.")),
    "all in one": _renamed(lambda key: f"model.{key}"),
    "nested": _renamed(lambda key: f"transformer.{key}"),
    "musubi-tuner": _with_alphas(_renamed(lambda key: _kohya(key, "lora_unet_"))),
    "a doubled separator": _renamed(lambda key: _kohya(key, "lora_unet__")),
    "OneTrainer, old": _renamed(
        lambda key: _theirs(key, "transformer.").replace("_A.", "_down.").replace("_B.", "_up.")
    ),
    "LyCORIS": _renamed(lambda key: _kohya(key, "lycoris_")),
    "SimpleTuner's fused names": _with_alphas(_fused),
}


@pytest.mark.parametrize("application", ["merged", "live"])
def test_every_spelling_of_a_lora_is_the_same_change(krea2, krea2_models, tmp_path, application):
    whole = load_file(krea2_models / "loras" / "lora.safetensors")
    models = tmp_path / "models"
    models.mkdir()
    for kind in ("diffusers", "diffusion_models", "text_encoders", "vae"):
        (models / kind).symlink_to(krea2_models / kind)
    (models / "loras").mkdir()
    save_file(whole, models / "loras" / "own.safetensors")
    for name, spell in SPELLINGS.items():
        tensors = {key: value.contiguous() for key, value in spell(whole).items()}
        save_file(tensors, models / "loras" / f"{name}.safetensors")
    use_host(PlainHost(models, krea2.input, krea2.output, "cpu"))
    lora = {"application": application}
    expected = _run({"weights": "tiny"}, lora={"lora_name": "own.safetensors", **lora})[4]["samples"]
    assert not torch.equal(expected, _run({"weights": "tiny"})[4]["samples"])
    loaded = engine().counters.parts_loaded
    for name in SPELLINGS:
        found = _run({"weights": "tiny"}, lora={"lora_name": f"{name}.safetensors", **lora})[4]["samples"]
        # a fused pair sums in another order: measured 8e-6 of the largest
        assert (found - expected).abs().max() < 5e-5 * expected.abs().max(), name
    assert engine().counters.parts_loaded == loaded


def test_a_fused_lokr_changes_all_three(krea2, krea2_models, tmp_path):
    """SimpleTuner's LyCORIS: the Kronecker product's rows are those of queries, keys and values below each other."""
    generator = torch.Generator().manual_seed(3)
    fused = {f"w{n}": torch.randn(shape, generator=generator) * 0.3 for n, shape in ((1, (16, 8)), (2, (32, 32)))}
    change = torch.kron(fused["w1"], fused["w2"])
    assert change.shape == (512, 256)
    models = shutil.copytree(krea2_models, tmp_path / "models")
    name = "lycoris_transformer_blocks_1_attn_to_qkv"
    alpha = {f"{name}.alpha": torch.tensor(1.0)}
    factors = {f"{name}.lokr_{factor}": value for factor, value in fused.items()}
    save_file(factors | alpha, models / "loras" / "fused.safetensors")
    rows = dict(zip(("wq", "wk", "wv"), change.split((256, 128, 128)), strict=True))
    apart = {f"diffusion_model.blocks.1.attn.{part}.diff": value.contiguous() for part, value in rows.items()}
    save_file(apart, models / "loras" / "apart.safetensors")
    use_host(PlainHost(models, krea2.input, krea2.output, "cpu"))
    found, expected = (
        _run({"weights": "tiny"}, lora={"lora_name": file, "application": "merged"})[4]["samples"]
        for file in ("fused.safetensors", "apart.safetensors")
    )
    assert (found - expected).abs().max() < 5e-5 * expected.abs().max()
    assert not torch.equal(found, _run({"weights": "tiny"})[4]["samples"])


def test_strength_reloads_nothing(krea2):
    load = {"weights": SINGLE, **PARTS}
    base = _run(load)[4]["samples"]
    first = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 1.0})[4]["samples"]
    loaded, encoded = engine().counters.parts_loaded, engine().counters.texts_encoded
    half = _run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.5})[4]["samples"]
    assert 0 < (half - base).norm() < (first - base).norm()
    assert torch.equal(_run(load, lora={"lora_name": "lokr.safetensors", "strength": 0.0})[4]["samples"], base)
    assert (engine().counters.parts_loaded, engine().counters.texts_encoded) == (loaded, encoded)


# ---- latents, recipes, errors ---------------------------------------------------------------------------------------


def test_latents_go_in_and_come_out(krea2):
    result = _run({"weights": "tiny"}, steps=4)
    pipeline, latent = result[1], result[4]["samples"]
    assert latent.shape == (1, 16, 1, 8, 8)

    def again(denoise: float) -> torch.Tensor:
        request = SampleRequest("trainer preview", "a dog", steps=2, seed=9, denoise=denoise, latent=latent)
        return sample(engine(), pipeline, request, SilentObserver()).latent

    little, half, whole = ((again(denoise) - latent).norm() for denoise in (0.05, 0.5, 1.0))
    assert little < half < whole


def test_the_recipes_differ_and_the_report_says_which(krea2):
    trainer, found = "trainer preview", {}
    names = ("reference pipeline", trainer, f"{trainer} until 2026-07-07")
    for recipe in names:
        result = _run({"weights": "tiny", "dtype": "bfloat16"}, recipe=recipe, steps=3)
        report = json.loads(result[6])
        found[recipe] = result[4]["samples"]
        assert report["recipe"] == recipe
        assert report["text_encoder"]["rope_in_run_dtype"] == (recipe == names[0])
    for index, recipe in enumerate(names):
        assert not any(torch.equal(found[recipe], found[other]) for other in names[:index])
    report = json.loads(_run({"weights": "tiny"}, recipe=names[2])[6])
    assert report["era"] == {"first": "2026-06-23", "last": "2026-07-07", "version": "0.10.17"}


def test_a_long_text_keeps_the_end_of_its_template_and_says_what_was_cut(krea2):
    result = _run({"weights": "tiny"}, prompt="fox " * 600, guidance_scale=1.0)
    notes = json.loads(result[6])["notes"]
    assert any("was cut at 517 tokens" in note for note in notes)


def test_tiles_change_a_large_picture_alone(krea2):
    def picture(tiled: bool, width: int) -> torch.Tensor:
        options = RuntimeOptions(own=Chosen.of({"vae_tiling": tiled}))
        return _run({"weights": "tiny", "options": options}, width=width, height=64, steps=1)[0]

    assert torch.equal(picture(True, 256), picture(False, 256))
    assert not torch.equal(picture(True, 272), picture(False, 272))


ERRORS = [
    ({"weights": "tiny"}, {"system_prompt": "Draw."}, "Krea 2 takes no system prompt"),
    ({"weights": "tiny"}, {"recipe": "sd-scripts"}, "Krea 2 has no recipe 'sd-scripts'"),
    ({"weights": "tiny"}, {"width": 8208}, "width is 8,208: this model renders at most 8,192"),
    ({"weights": SINGLE}, {}, "holds only the transformer of Krea 2. Choose a file for text_encoder and vae"),
    ({"weights": "tiny"}, {"recipe": "reference pipeline", "options": {"schedule_mu": 1.0}}, "schedule_mu of AITK"),
]


@pytest.mark.parametrize(("load", "sample", "message"), ERRORS)
def test_what_is_refused(krea2, load, sample, message):
    with pytest.raises(AITKError, match=message):
        _run(load, **sample)


# ---- training adapter -----------------------------------------------------------------------------------------------


def _adapted(*nodes: tuple[str, dict], model: str = "krea2:turbo"):
    """The handle behind nodes in a row."""
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(model=model, weights="tiny", dtype="bfloat16")
    for name, inputs in nodes:
        cls = NODE_CLASS_MAPPINGS[name]
        pipeline = getattr(cls(), cls.FUNCTION)(pipeline=pipeline, **inputs)[0]
    return pipeline


ADAPTER = ("AITKTrainingAdapter", {"adapter_name": "lora.safetensors"})


def test_an_adapter_leaves_the_merge_s_rounding_alone(krea2):
    request = SampleRequest("trainer preview", "a fox", width=64, height=64, steps=2)

    def latent(pipeline) -> torch.Tensor:
        return sample(engine(), pipeline, request, SilentObserver()).latent

    plain, adapted = latent(_adapted()), latent(_adapted(ADAPTER))
    alone = latent(_adapted(("ApplyAITKLoRA", {"lora_name": "lora.safetensors", "strength": 1.0})))
    assert 0 < (adapted - plain).norm() < (alone - plain).norm() / 5
    with pytest.raises(AITKError, match="AI Toolkit trains Krea 2 without a training adapter"):
        _adapted(ADAPTER, model="krea2")
