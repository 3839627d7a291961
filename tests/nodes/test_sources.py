"""The same weights in every container that users have: the same picture; and what is said of files that do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.tiny import containers
from comfyui_aitk.headless.tiny.loras import write_kohya
from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files import read_tensors
from comfyui_aitk.pipelines.files.packed import dense
from comfyui_aitk.pipelines.parts.language_model.gemma2 import load_tokenizer
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

PARTS = {"text_encoder": "gemma_2_2b_fp16.safetensors", "vae": "ae.safetensors"}
# relative error of the last latents against unquantised weights; measured: 0.0065, 0.024, 0.092
GGUF = {"Q8_0": 0.013, "Q4_K": 0.05, "Q4_0": 0.18}
FILES = {
    "three files": {"weights": "lumina_2.safetensors", **PARTS},
    "prefixed file": {"weights": "sub/prefixed.safetensors", **PARTS},
    "all in one": {"weights": "all_in_one.safetensors"},
    "all in one, other decoder": {"weights": "all_in_one.safetensors", "vae": "ae.safetensors"},
    "pth": {"weights": "consolidated.00-of-01.pth", **PARTS},
    "GGUF BF16": {"weights": "lumina2-bf16.gguf", **PARTS},
    "GGUF BF16, diffusers' names": {"weights": "lumina2-bf16-diffusers.gguf", **PARTS},
    "folder, other encoder": {"weights": "tiny", "text_encoder": PARTS["text_encoder"]},
}


@pytest.fixture(scope="session")
def containers_folder(models: Path, tmp_path_factory) -> Path:
    """A models folder with the tiny checkpoint in every layout, and a kohya LoRA for it. Read only."""
    folder = tmp_path_factory.mktemp("containers")
    tiny = models / "diffusers" / "tiny"
    shutil.copytree(tiny, folder / "diffusers" / "tiny")
    for kind in ("diffusion_models/sub", "checkpoints", "text_encoders", "vae", "loras"):
        (folder / kind).mkdir(parents=True)
    models_folder = folder / "diffusion_models"
    containers.write_dit(models_folder / "lumina_2.safetensors", tiny)
    containers.write_dit(models_folder / "sub" / "prefixed.safetensors", tiny, prefix="model.diffusion_model.")
    containers.write_pth(models_folder / "consolidated.00-of-01.pth", tiny)
    containers.write_gguf(models_folder / "lumina2-bf16.gguf", tiny, "BF16")
    containers.write_gguf(models_folder / "lumina2-bf16-diffusers.gguf", tiny, "BF16", names="diffusers")
    for quant in GGUF:
        containers.write_gguf(models_folder / f"lumina2-{quant}.gguf", tiny, quant)
    containers.write_all_in_one(folder / "checkpoints" / "all_in_one.safetensors", tiny)
    containers.write_gemma2(folder / "text_encoders" / PARTS["text_encoder"], tiny)
    containers.write_ae(folder / "vae" / PARTS["vae"], tiny)
    write_kohya(folder / "loras" / "kohya.safetensors", tiny, text_encoder=True)
    return folder


@pytest.fixture
def everywhere(host, containers_folder: Path) -> PlainHost:
    plain = PlainHost(containers_folder, host.input, host.output, "cpu")
    use_host(plain)
    return plain


def _run(load: dict, *, dtype: str = "float32", lora: dict | None = None, **sample: object):
    graph = {
        "load": {"class_type": "LoadAITKModel", "inputs": {"model": "lumina2", "dtype": dtype, **load}},
        "sample": {
            "class_type": "AITKSampler",
            "inputs": {
                "pipeline": ["load", 0], "prompt": "a red fox", "negative_prompt": "fog", "width": 64, "height": 64,
                "steps": 3, "guidance_scale": 4.0, "seed": 1, "recipe": "reference pipeline", "trigger_word": "",
                "system_prompt": "", "batch_size": 1,
            } | sample,
        },
    }  # fmt: skip
    save = {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"}
    graph["save"] = {"class_type": "AITKSaveImage", "inputs": save}
    if lora is not None:
        inputs = {"pipeline": ["load", 0], "lora_name": "kohya.safetensors", "strength": 0.8, "application": "auto"}
        graph["lora"] = {"class_type": "ApplyAITKLoRA", "inputs": inputs | lora}
        graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    return run_prompt(graph, NODE_CLASS_MAPPINGS).results["sample"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_give_the_same_picture_from_every_container(everywhere, monkeypatch, dtype):
    # what ComfyUI's own environment may lack
    for missing in ("google.protobuf", "torchvision", "tiktoken"):
        monkeypatch.setitem(sys.modules, missing, None)
    expected = _run({"weights": "tiny"}, dtype=dtype)
    for name, load in FILES.items():
        result = _run(load, dtype=dtype)
        assert torch.equal(result[0], expected[0]), name
        report = json.loads(result[6])["model"]
        named = load["weights"] if len(load) == 1 else {"transformer": load["weights"], **PARTS}
        if name not in ("all in one, other decoder", "folder, other encoder"):
            assert report["weights"] == named


@pytest.mark.parametrize("quant", GGUF)
def test_gguf_blocks_give_the_picture_of_their_values(everywhere, containers_folder, tmp_path, quant):
    file = containers_folder / "diffusion_models" / f"lumina2-{quant}.gguf"
    packed = _run({"weights": file.name, **PARTS})
    # the same values in a plain file
    (tmp_path / "diffusion_models").mkdir()
    for kind in ("text_encoders", "vae"):
        shutil.copytree(containers_folder / kind, tmp_path / kind)
    values = {name: dense(value).contiguous() for name, value in read_tensors(file)}
    save_file(values, tmp_path / "diffusion_models" / "plain.safetensors")
    unquantised = _run({"weights": "lumina_2.safetensors", **PARTS})
    use_host(PlainHost(tmp_path, everywhere.input, everywhere.output, "cpu"))
    plain = _run({"weights": "plain.safetensors", **PARTS})
    assert torch.equal(packed[0], plain[0])
    exact, near = unquantised[4]["samples"], packed[4]["samples"]
    error = float((near - exact).norm() / exact.norm())
    assert 0 < error < GGUF[quant], error
    assert json.loads(packed[6])["model"]["quantization"]["transformer"].startswith("GGUF")


@pytest.mark.parametrize("recipe", ["reference pipeline", "trainer preview", "sd-scripts"])
def test_a_lora_with_a_text_encoder_half_on_gguf_and_on_a_folder(everywhere, recipe):
    """Live on both: the same change of the same weights, since BF16 blocks are the weights themselves."""
    base = _run({"weights": "tiny"}, recipe=recipe)
    folder = _run({"weights": "tiny"}, lora={"application": "live"}, recipe=recipe)
    gguf = _run({"weights": "lumina2-bf16.gguf", **PARTS}, lora={"application": "live"}, recipe=recipe)
    assert torch.equal(folder[0], gguf[0])
    assert not torch.equal(folder[0], base[0])
    packed = _run({"weights": "lumina2-Q8_0.gguf", **PARTS}, lora={}, recipe=recipe)
    error = (packed[4]["samples"] - folder[4]["samples"]).norm() / folder[4]["samples"].norm()
    assert error < 2 * GGUF["Q8_0"]


@settings(max_examples=60)
@given(
    st.text(max_size=60) | st.sampled_from(["a <bos> b", "<pad><eos>", "  two  spaces ", "\n\n", "<2mass>", "🦊 fox"])
)
def test_the_embedded_tokenizer_is_the_folder_s(containers_folder, text):
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint

    model = find_model("lumina2")
    folder = Checkpoint.open(containers_folder / "diffusers" / "tiny", "tiny", model.files).source("text_encoder")
    path = containers_folder / "text_encoders" / PARTS["text_encoder"]
    embedded = open_single_file(path, path.name, model.files)["text_encoder"]
    assert load_tokenizer(embedded)(text, None) == load_tokenizer(folder)(text, None)


def _edit(source: str, target: str, change) -> object:
    """A file made of another one's tensors."""

    def write(folder: Path) -> None:
        tensors = load_file(folder / source)
        save_file(change(tensors), folder / target)

    return write


def _half_the_channels(tensors: dict) -> dict:
    return tensors | {"decoder.conv_in.weight": tensors["decoder.conv_in.weight"][:, :8].contiguous()}


DIT = "diffusion_models/lumina_2.safetensors"
BAD = "diffusion_models/bad.safetensors"
ENCODER = f"text_encoders/{PARTS['text_encoder']}"


@pytest.mark.parametrize(
    ("damage", "load", "message"),
    [
        (
            None,
            {"weights": "lumina_2.safetensors"},
            "'lumina_2.safetensors' holds only the transformer of Lumina Image",
        ),
        (
            None,
            {"weights": "lumina_2.safetensors", "vae": "ae.safetensors"},
            "holds only the transformer of Lumina Image 2.0. Choose a file for text_encoder on Load AITK Model too",
        ),
        (
            None,
            {"weights": "lumina_2.safetensors", "text_encoder": PARTS["text_encoder"], "vae": "none.safetensors"},
            "input 'vae': 'none.safetensors' is not one of its choices",
        ),
        (None, {"weights": "../vae/ae.safetensors"}, "weights '../vae/ae.safetensors' is refused"),
        (
            None,
            {"weights": "tiny", "text_encoder": "/etc/passwd"},
            "input 'text_encoder': '/etc/passwd' is not one of its choices",
        ),
        (
            lambda f: shutil.copy(f / "vae" / "ae.safetensors", f / BAD),
            {"weights": "bad.safetensors"},
            "holds the vae of Lumina Image 2.0, and weights must hold the transformer. Choose it as vae",
        ),
        (
            lambda f: shutil.copy(f / DIT, f / "vae" / "bad.safetensors"),
            {"weights": "tiny", "vae": "bad.safetensors"},
            "'bad.safetensors' holds the transformer of Lumina Image 2.0, no vae",
        ),
        (
            lambda f: save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, f / BAD),
            {"weights": "bad.safetensors", **PARTS},
            "holds no part of Lumina Image 2.0: its 1 tensors begin with 'double_blocks.0.img_attn.qkv.weight'",
        ),
        (
            lambda f: shutil.copy(f / DIT, f / "checkpoints" / "lumina_2.safetensors"),
            {"weights": "lumina_2.safetensors", **PARTS},
            "'lumina_2.safetensors' is in diffusion_models and in checkpoints: rename one",
        ),
        (
            _edit(DIT, BAD, lambda t: {k: v for k, v in t.items() if k != "layers.1.feed_forward.w2.weight"}),
            {"weights": "bad.safetensors", **PARTS},
            "transformer lacks 1 of",
        ),
        (
            _edit(DIT, BAD, lambda t: t | {"layers.0.surprise.weight": torch.zeros(3)}),
            {"weights": "bad.safetensors", **PARTS},
            "the model has no place for 1 of its tensors, the first is 'layers.0.surprise.weight'",
        ),
        (
            _edit(DIT, BAD, lambda t: t | {"layers.0.attention.qkv.weight": torch.zeros(97, 96)}),
            {"weights": "bad.safetensors", **PARTS},
            "layers.0.attention.qkv.weight has 97 rows, of which 96 are queries",
        ),
        (
            _edit(
                DIT,
                BAD,
                lambda t: (
                    t | {"norm_final.weight": t["norm_final.weight"], "x_embedder.bias": torch.full((96,), torch.nan)}
                ),
            ),
            {"weights": "bad.safetensors", **PARTS},
            "bad.safetensors transformer is damaged: its tensor 'x_embedder.bias' holds NaN or Inf",
        ),
        (
            _edit(
                ENCODER, "text_encoders/bad.safetensors", lambda t: {k: v for k, v in t.items() if k != "spiece_model"}
            ),
            {"weights": "lumina_2.safetensors", "vae": "ae.safetensors", "text_encoder": "bad.safetensors"},
            "'Alpha-VLLM/Lumina-Image-2.0' is not (wholly) in the cache",
        ),
        (
            _edit(
                ENCODER,
                "text_encoders/bad.safetensors",
                lambda t: t | {"spiece_model": torch.tensor([1, 2, 3], dtype=torch.uint8)},
            ),
            {"weights": "lumina_2.safetensors", "vae": "ae.safetensors", "text_encoder": "bad.safetensors"},
            "The tokenizer in 'bad.safetensors' is damaged: it is no sentencepiece model",
        ),
        (
            _edit(
                ENCODER,
                "text_encoders/bad.safetensors",
                lambda t: t | {"model.layers.0.self_attn.q_norm.weight": torch.ones(256)},
            ),
            {"weights": "lumina_2.safetensors", "vae": "ae.safetensors", "text_encoder": "bad.safetensors"},
            "it is Gemma 3, and this model was trained with Gemma 2",
        ),
        (
            _edit(
                DIT,
                BAD,
                lambda t: t | {"cap_embedder.0.weight": torch.ones(40), "cap_embedder.1.weight": torch.zeros(96, 40)},
            ),
            {"weights": "bad.safetensors", **PARTS},
            "gives 32 values a token, and the transformer of 'bad.safetensors' takes 40",
        ),
        (
            lambda f: (f / DIT).with_suffix(".aitk.json").write_text("[1]"),
            {"weights": "lumina_2.safetensors", **PARTS},
            "lumina_2.aitk.json holds no JSON object",
        ),
        (
            lambda f: (f / DIT).with_suffix(".aitk.json").write_text('{"transformer": {"num_attention_heads": 5}}'),
            {"weights": "lumina_2.safetensors", **PARTS},
            "a head of its transformer has 19 channels, and the rotary axes [8, 8, 8] do not fill it",
        ),
        (
            lambda f: (f / DIT).with_suffix(".aitk.json").write_text('{"transformer": {"num_attention_heads": 0}}'),
            {"weights": "lumina_2.safetensors", **PARTS},
            "sizes (transformer) of 'lumina_2.safetensors' cannot be used (ZeroDivisionError",
        ),
        (
            lambda f: (f / "diffusion_models" / "cut.gguf").write_bytes(
                (f / "diffusion_models" / "lumina2-Q8_0.gguf").read_bytes()[:-50]
            ),
            {"weights": "cut.gguf", **PARTS},
            "'cut.gguf' is cut off",
        ),
        (
            _edit(f"vae/{PARTS['vae']}", "vae/bad.safetensors", _half_the_channels),
            {"weights": "tiny", "vae": "bad.safetensors"},
            "The VAE of 'bad.safetensors' has 8 channels, and the transformer of 'tiny' takes 16",
        ),
        (
            lambda f: torch.save({"a": print}, f / "diffusion_models" / "code.pth"),
            {"weights": "code.pth", **PARTS},
            "'code.pth' is refused: its pickle holds code or Python objects (print), not only tensors",
        ),
        (
            lambda f: (f / "diffusion_models" / "page.safetensors").write_text("<!DOCTYPE html>"),
            {"weights": "page.safetensors", **PARTS},
            "it is an HTML page",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_files(host, containers_folder, tmp_path, damage, load, message):
    folder = tmp_path / "own"
    shutil.copytree(containers_folder, folder)
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    if damage is not None:
        damage(folder)
    with pytest.raises(AITKError) as caught:
        _run(load, steps=1)
    assert message in str(caught.value), str(caught.value)


def test_quantised_files_are_not_quantised_again_and_not_merged_into(everywhere):
    nodes = NODE_CLASS_MAPPINGS
    (options,) = nodes["AITKRuntimeOptions"]().make("qint8", "none")
    load = {"weights": "lumina2-Q8_0.gguf", **PARTS}
    (pipeline,) = nodes["LoadAITKModel"]().load("lumina2", dtype="auto", options=options, **load)
    with pytest.raises(AITKError, match=r"'lumina2-Q8_0.gguf' is quantised already, and qint8 would quantise it a sec"):
        nodes["AITKSampler"]().sample(pipeline, "a", "", 64, 64, 1, 4.0, 1, "reference pipeline")
    with pytest.raises(
        AITKError, match=r"'kohya.safetensors' cannot be merged: the transformer is quantised \(GGUF Q8"
    ):
        _run(load, lora={"application": "merged"})


def test_a_file_that_was_replaced_is_noticed(host, containers_folder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(containers_folder, folder)
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    node = NODE_CLASS_MAPPINGS["LoadAITKModel"]
    load = {"model": "lumina2", "weights": "lumina_2.safetensors", **PARTS}
    (pipeline,) = node().load(dtype="float32", **load)
    before = node.IS_CHANGED(**load)
    other = make_checkpoint(tmp_path / "other", seed=3)
    containers.write_dit(folder / DIT, other)
    assert node.IS_CHANGED(**load) != before
    with pytest.raises(AITKError, match=r"'lumina_2.safetensors' was replaced after its node ran"):
        NODE_CLASS_MAPPINGS["AITKSampler"]().sample(pipeline, "a", "", 64, 64, 1, 4.0, 1, "reference pipeline")
    (again,) = node().load(dtype="float32", **load)
    assert again != pipeline
