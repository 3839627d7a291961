"""FLUX.2's weights in every layout that users have: the same picture; and what is said of files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2 as tiny
from comfyui_aitk.headless.tiny.containers import write_gguf_tensors, write_scaled_float8
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.packed import dense
from comfyui_aitk.pipelines.files.quantised import read_header, read_tensors
from rendering import noise_image, put_into_cache, render
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("kept_engine")

PARTS = {"text_encoder": "mistral.safetensors", "vae": "flux2-vae.safetensors"}
LAYOUTS = {
    "AI Toolkit's folder": {"weights": "tiny"},
    "diffusers' folder": {"weights": "diffusers"},
    "ComfyUI's files": {"weights": "dit.safetensors", **PARTS},
    "prefixed, ComfyUI's norm names": {"weights": "prefixed.safetensors", **PARTS},
    "other parts than the folder's": {"weights": "diffusers", **PARTS},
    "GGUF BF16": {"weights": "BF16.gguf", **PARTS},
}


@pytest.fixture(scope="session")
def flux2_models(tmp_path_factory) -> Path:
    """A models folder with tiny FLUX.2-dev and klein in every layout, LoRAs for them, and one for FLUX.1. Read only."""
    folder = tmp_path_factory.mktemp("flux2")
    dev = tiny.make_checkpoint(folder / "diffusers" / "tiny")
    klein = tiny.make_checkpoint(folder / "diffusers" / "klein", "flux2_klein_4b")
    for kind in ("diffusion_models", "text_encoders", "vae", "loras"):
        (folder / kind).mkdir()
    tiny.write_diffusers(folder / "diffusers" / "diffusers", dev)
    dit = folder / "diffusion_models"
    shutil.copy(dev / "flux2-dev.safetensors", dit / "dit.safetensors")
    comfy = {
        "model.diffusion_model." + name.replace("_norm.scale", "_norm.weight"): value
        for name, value in load_file(dit / "dit.safetensors").items()
    }
    write_tensors(dit / "prefixed.safetensors", comfy, {})
    write_scaled_float8(dit / "fp8.safetensors", dit / "dit.safetensors", "new")
    values = {
        name: dense(value, torch.float32).contiguous()
        for name, value in read_tensors(dit / "fp8.safetensors", list(read_header(dit / "fp8.safetensors").tensors))
    }
    write_tensors(dit / "fp8_values.safetensors", values, {})
    for quant in ("BF16", "Q8_0"):
        write_gguf_tensors(dit / f"{quant}.gguf", load_file(dit / "dit.safetensors"), quant, "flux")
    shutil.copy(dev / "ae.safetensors", folder / "vae" / "flux2-vae.safetensors")
    tiny.write_text_encoder(folder / "text_encoders" / "mistral.safetensors", dev)
    tiny.write_text_encoder(folder / "text_encoders" / "qwen.safetensors", klein)
    tiny.make_lora(folder / "loras" / "dev.safetensors", dev, trigger_word="t1ny")
    tiny.make_lora(folder / "loras" / "klein.safetensors", klein)
    tiny.write_split_lora(folder / "loras" / "split.safetensors", folder / "loras" / "dev.safetensors", dev)
    flux1 = {
        f"transformer.single_transformer_blocks.0.attn.to_q.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (4, 256)), ("B", (256, 4)))
    }
    write_tensors(folder / "loras" / "flux1.safetensors", flux1, {})
    return folder


@pytest.fixture
def flux2(host, flux2_models: Path) -> PlainHost:
    plain = PlainHost(flux2_models, host.input, host.output, "cpu")
    use_host(plain)
    return plain


def _run(load: dict, **change) -> tuple:
    return render({"model": "flux2", **load}, **change)


def test_the_same_weights_give_the_same_picture_from_every_layout(flux2):
    expected = _run({"weights": "tiny"})
    assert json.loads(expected[6])["model"]["quantization"] == {"transformer": "none", "text_encoder": "qfloat8"}
    for name, load in LAYOUTS.items():
        result = _run(load)
        assert torch.equal(result[0], expected[0]), name


def test_scaled_float8_gives_the_picture_of_its_values_with_a_live_lora(flux2):
    lora = {"lora_name": "dev.safetensors"}
    packed = _run({"weights": "fp8.safetensors", **PARTS}, lora=lora)
    plain = _run({"weights": "fp8_values.safetensors", **PARTS}, lora=lora | {"application": "live"})
    assert torch.equal(packed[0], plain[0])
    assert json.loads(packed[6])["model"]["quantization"]["transformer"] == "scaled float8"


def test_gguf_blocks_of_8_bits_are_near_and_take_a_live_lora(flux2):
    lora = {"lora_name": "split.safetensors"}
    exact = _run({"weights": "tiny"}, lora=lora | {"application": "live"})[4]["samples"]
    packed = _run({"weights": "Q8_0.gguf", **PARTS}, lora=lora)
    assert json.loads(packed[6])["model"]["quantization"]["transformer"].startswith("GGUF")
    assert json.loads(packed[6])["loras"][0]["application"] == "live"
    assert 0 < (packed[4]["samples"] - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("application", ["merged", "live"])
def test_a_lora_split_as_diffusers_splits_it_is_the_same(flux2, application):
    base = _run({"weights": "tiny"})
    fused, split = (
        _run({"weights": "tiny"}, lora={"lora_name": f"{name}.safetensors", "application": application})
        for name in ("dev", "split")
    )
    assert not torch.equal(fused[0], base[0])
    # fused layers multiply once for three: the last bits of a product may differ
    assert (fused[4]["samples"] - split[4]["samples"]).abs().max() < 1e-5


def _language_model(checkpoint: Path) -> dict[str, Path]:
    return {file.name: file for part in ("text_encoder", "tokenizer") for file in (checkpoint / part).iterdir()}


def test_default_takes_each_part_from_where_ai_toolkit_takes_it(flux2, flux2_models, hub_cache):
    dev, klein = (flux2_models / "diffusers" / name for name in ("tiny", "klein"))
    with pytest.raises(AITKError, match=r"'black-forest-labs/FLUX.2-dev' is not \(wholly\) in the cache"):
        _run({"weights": "default"})
    # another text encoder lies in the model's own repository, and is not the trainer's
    other = {f"text_encoder/{file.name}": file for file in (klein / "text_encoder").iterdir()}
    own = {name: dev / name for name in ("flux2-dev.safetensors", "ae.safetensors")}
    put_into_cache(hub_cache, "black-forest-labs/FLUX.2-dev", own | other)
    with pytest.raises(AITKError, match=r"'mistralai/Mistral-Small-3\.1-24B-Instruct-2503' is not"):
        _run({"weights": "default"})
    put_into_cache(hub_cache, "mistralai/Mistral-Small-3.1-24B-Instruct-2503", _language_model(dev))
    expected = _run({"weights": "tiny"})
    found = _run({"weights": "default"})
    assert torch.equal(found[0], expected[0])
    named = json.loads(found[6])["model"]["weights"]
    assert named["transformer"] == "black-forest-labs/FLUX.2-dev@0123456789ab/flux2-dev.safetensors"
    assert named["text_encoder"] == "mistralai/Mistral-Small-3.1-24B-Instruct-2503@0123456789ab"

    # klein's autoencoder has a repository of its own, and a file given for a part is not looked for on the hub
    put_into_cache(
        hub_cache,
        "black-forest-labs/FLUX.2-klein-base-4B",
        {"flux-2-klein-base-4b.safetensors": klein / "flux-2-klein-base-4b.safetensors"},
    )
    put_into_cache(hub_cache, "ai-toolkit/flux2_vae", {"ae.safetensors": klein / "ae.safetensors"})
    put_into_cache(hub_cache, "Qwen/Qwen3-4B", _language_model(klein))
    expected = _run({"model": "flux2_klein_4b", "weights": "klein"})
    for load in ({}, {"text_encoder": "qwen.safetensors"}):
        assert torch.equal(_run({"model": "flux2_klein_4b", "weights": "default", **load})[0], expected[0])


def test_a_folder_of_ai_toolkits_two_files_takes_its_text_encoder_from_the_hub(
    flux2, flux2_models, hub_cache, tmp_path
):
    dev, bare = flux2_models / "diffusers" / "tiny", tmp_path / "models" / "diffusers" / "bare"
    bare.mkdir(parents=True)
    for name in ("flux2-dev.safetensors", "ae.safetensors"):
        (bare / name).hardlink_to(dev / name)
    expected = _run({"weights": "tiny"})
    use_host(PlainHost(tmp_path / "models", flux2.input, flux2.output, "cpu"))
    with pytest.raises(AITKError, match=r"'mistralai/Mistral-Small-3\.1-24B-Instruct-2503' is not"):
        _run({"weights": "bare"})
    put_into_cache(hub_cache, "mistralai/Mistral-Small-3.1-24B-Instruct-2503", _language_model(dev))
    assert torch.equal(_run({"weights": "bare"})[0], expected[0])


def test_a_qwen3_file_takes_its_tokenizer_from_the_hub(flux2, flux2_models, hub_cache):
    load = {"model": "flux2_klein_4b", "weights": "klein", "text_encoder": "qwen.safetensors"}
    with pytest.raises(AITKError, match="'Qwen/Qwen3-4B' is not"):
        _run(load)
    klein = flux2_models / "diffusers" / "klein"
    put_into_cache(hub_cache, "Qwen/Qwen3-4B", {file.name: file for file in (klein / "tokenizer").iterdir()})
    assert torch.equal(_run(load)[0], _run({"model": "flux2_klein_4b", "weights": "klein"})[0])


def test_strength_changes_and_new_control_images_reload_nothing(flux2):
    from comfyui_aitk.nodes.sampler import engine

    _run({"weights": "tiny"}, lora={"lora_name": "dev.safetensors"})
    loaded, encoded = engine().counters.parts_loaded, engine().counters.texts_encoded
    restored = engine().counters.tensors_restored
    _run({"weights": "tiny"}, lora={"lora_name": "dev.safetensors", "strength": -0.3}, control=[noise_image(80, 64)])
    _run({"weights": "tiny"}, lora={"lora_name": "dev.safetensors", "strength": 0.0})
    assert (engine().counters.parts_loaded, engine().counters.texts_encoded) == (loaded, encoded)
    # the other strength was merged in the first one's place, and undone once, from the touched tensors alone
    assert engine().counters.tensors_restored - restored == len(tiny.trained_layers(flux2.models / "diffusers/tiny"))


def test_control_images_count_in_their_order_and_for_every_picture_of_a_batch(flux2):
    first, second = noise_image(80, 64), noise_image(64, 112, seed=1)
    one = _run({"weights": "tiny"}, control=[first])
    both, swapped = (_run({"weights": "tiny"}, control=images) for images in ([first, second], [second, first]))
    assert not torch.equal(one[0], both[0])
    assert not torch.equal(both[0], swapped[0])
    batch = _run({"weights": "tiny"}, control=[first, second], batch_size=2)
    assert torch.equal(batch[0][:1], both[0])
    assert torch.equal(batch[0][1:], _run({"weights": "tiny"}, control=[first, second], seed=2)[0])
    assert [image["size"] for image in json.loads(both[6])["control_images"]] == [[80, 64], [64, 112]]


def test_klein_is_guided_by_its_negative_prompt_and_dev_is_not(flux2):
    klein = {"model": "flux2_klein_4b", "weights": "klein"}
    pictures = [_run(klein, negative_prompt=text)[0] for text in ("", "fog")]
    assert not torch.equal(*pictures)
    assert torch.equal(*(_run(klein, negative_prompt=text, guidance_scale=1.0)[0] for text in ("", "fog")))
    dev = [_run({"weights": "tiny"}, negative_prompt=text) for text in ("", "fog")]
    assert torch.equal(dev[0][0], dev[1][0])
    assert "FLUX.2-dev has its guidance built in" in json.loads(dev[1][6])["notes"][0]


ERRORS = [
    ({"weights": "klein"}, {}, "'klein' is no model folder of FLUX.2-dev: it has no model_index"),
    (
        {"model": "flux2_klein_4b", "weights": "dit.safetensors", **PARTS},
        {},
        "'mistral.safetensors' holds no part of FLUX.2-klein 4B",
    ),
    ({"weights": "dit.safetensors"}, {}, "Choose a file for text_encoder and vae"),
    (
        {"weights": "tiny", "text_encoder": "qwen.safetensors"},
        {},
        "it is Qwen3, and this model was trained with Mistral",
    ),
    ({"model": "lumina2", "weights": "dit.safetensors", **PARTS}, {}, "holds no part of Lumina Image 2.0"),
    ({"weights": "tiny"}, {"lora": {"lora_name": "klein.safetensors"}}, "was trained on FLUX.2-klein 4B"),
    ({"weights": "tiny"}, {"lora": {"lora_name": "flux1.safetensors"}}, "It looks like one for FLUX.1"),
    (
        {"model": "flux2_klein_4b", "weights": "klein"},
        {"lora": {"lora_name": "dev.safetensors"}},
        "was trained on FLUX.2-dev",
    ),
    (
        {"weights": "tiny"},
        {"control": [noise_image(80, 63)]},
        "Control image 1 is 80 x 63: FLUX.2 needs 64 pixels a side",
    ),
    (
        {"weights": "tiny"},
        {"control": [noise_image(64, 64), noise_image(64, 528)]},
        "Control image 2 is 64 x 528: .* up to 8 to 1",
    ),
    (
        {"weights": "tiny"},
        {"control": [noise_image(64, 64)], "recipe": "reference pipeline"},
        "'reference pipeline' of FLUX.2-dev takes no control images.*choose the recipe 'trainer preview'",
    ),
    ({"weights": "tiny"}, {"recipe": "sd-scripts"}, "FLUX.2-dev has no recipe 'sd-scripts'"),
    ({"weights": "tiny"}, {"width": 63, "recipe": "reference pipeline"}, "width is 63: the smallest side is 64"),
    (
        {"model": "flux2_klein_4b", "weights": "klein"},
        {"system_prompt": "Draw."},
        "FLUX.2-klein 4B takes no system prompt",
    ),
]


@pytest.mark.parametrize(("load", "change", "message"), ERRORS, ids=[message[:40] for *_, message in ERRORS])
def test_what_does_not_fit_is_named_and_the_next_run_works(flux2, load, change, message):
    with pytest.raises(AITKError, match=message):
        _run(load, **change)
    assert torch.isfinite(_run({"weights": "tiny"})[0]).all()


def test_half_of_the_shards_and_another_autoencoder_are_named(flux2, flux2_models, models, tmp_path):
    folder = shutil.copytree(flux2_models, tmp_path / "models", copy_function=_link)
    transformer = folder / "diffusers" / "diffusers" / "transformer"
    tensors = load_file(transformer / "diffusion_pytorch_model.safetensors")
    names = list(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, own in halves.items():
        write_tensors(transformer / file, {name: tensors[name] for name in own}, {})
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (transformer / "diffusion_pytorch_model.safetensors").unlink()
    (transformer / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    use_host(PlainHost(folder, flux2.input, flux2.output, "cpu"))
    # queries, keys and values of one layer lie in different shards
    sharded = _run({"weights": "diffusers"})
    assert torch.equal(sharded[0], _run({"weights": "tiny"})[0])
    (transformer / "two.safetensors").unlink()
    with pytest.raises(
        AITKError, match=r"'diffusers' is incomplete: transformer lacks 1 of 2 shards, the first is 'two\.safetensors'"
    ):
        _run({"weights": "diffusers"})
    from comfyui_aitk.headless.tiny.containers import write_ae

    write_ae(folder / "vae" / "flux1-ae.safetensors", models / "diffusers" / "tiny")
    with pytest.raises(AITKError, match=r"'flux1-ae.safetensors' holds no part of FLUX.2-dev"):
        _run({"weights": "tiny", "vae": "flux1-ae.safetensors"})


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
