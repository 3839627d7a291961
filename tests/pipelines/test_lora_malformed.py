"""LoRA files that cannot be applied: what is wrong is named, and nothing is ever left out in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.loras import make_pairs, write_comfyui, write_diffusers, write_kohya
from comfyui_aitk.pipelines.errors import AITKError, LoraError
from comfyui_aitk.pipelines.files.header import Header, TensorInfo
from comfyui_aitk.pipelines.files.safetensors import read_header
from comfyui_aitk.pipelines.lora.file import open_lora, read_lora
from comfyui_aitk.pipelines.lora.formats import Contents, recognise
from comfyui_aitk.pipelines.lora.names import names_of
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

MODEL = find_model("lumina2")
Tensors = dict[str, torch.Tensor]
AGAIN = "Export or download the file again."
# out and in of the layers below, in the tiny model
QKV, OUT = (192, 96), (96, 96)
KOHYA, COMFYUI, TOOLKIT = "lora_unet_layers_0_attention_qkv", "diffusion_model.layers.0.attention.qkv", "transformer."
TO_OUT = "diffusion_model.layers.0.attention.out"


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def pair(name: str, down: str = "lora_A", up: str = "lora_B", shape: tuple[int, int] = OUT, rank: int = 2) -> Tensors:
    return {f"{name}.{down}.weight": zeros(rank, shape[1]), f"{name}.{up}.weight": zeros(shape[0], rank)}


def kohya(name: str, shape: tuple[int, int] = OUT, rank: int = 2) -> Tensors:
    return pair(name, "lora_down", "lora_up", shape, rank) | {f"{name}.alpha": torch.tensor(1.0)}


def roles(name: str, **shapes: tuple[int, ...]) -> Tensors:
    return {f"{name}.{role}": zeros(*shape) for role, shape in shapes.items()}


def without(tensors: Tensors, end: str) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.endswith(end)}


LOKR = {"lokr_w1": (12, 4), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 24)}
LOHA = {"hada_w1_a": (192, 2), "hada_w1_b": (2, 96), "hada_w2_a": (192, 2), "hada_w2_b": (2, 96)}
DORA = pair(TO_OUT) | {f"{TO_OUT}.magnitude": zeros(96)}

BAD = {
    # half of a layer
    "kohya without down": (without(kohya(KOHYA, QKV), "lora_down.weight"), f"{KOHYA!r} lacks lora_A. {AGAIN}"),
    "kohya without up": (without(kohya(KOHYA, QKV), "lora_up.weight"), f"{KOHYA!r} lacks lora_B. {AGAIN}"),
    "an alpha alone": ({f"{KOHYA}.alpha": torch.tensor(1.0)}, f"{KOHYA!r} has only alpha. {AGAIN}"),
    "ComfyUI without B": (without(pair(COMFYUI, shape=QKV), "lora_B.weight"), f"{COMFYUI!r} lacks lora_B. {AGAIN}"),
    "LoKr without w1": (without(roles(COMFYUI, **LOKR), "w1"), f"{COMFYUI!r} lacks lokr_w1"),
    "LoKr without half of w2": (without(roles(COMFYUI, **LOKR), "w2_b"), f"{COMFYUI!r} lacks lokr_w2_b"),
    "LoHa without a factor": (without(roles(COMFYUI, **LOHA), "w2_a"), f"{COMFYUI!r} lacks hada_w2_a"),
    "DoRA without B": (without(DORA, "lora_B.weight"), f"{TO_OUT!r} lacks lora_B"),
    "a magnitude alone": (roles(TO_OUT, magnitude=(96,)), f"{TO_OUT!r} lacks lora_A, lora_B"),
    "a dora_scale alone": (roles(TO_OUT, dora_scale=(96, 1)), f"{TO_OUT!r} has only dora_scale"),
    "dora_scale without B": (
        without(pair(TO_OUT), "lora_B.weight") | roles(TO_OUT, dora_scale=(96, 1)), f"{TO_OUT!r} lacks lora_B",
    ),
    # wrong shapes
    "a pair that does not multiply": (
        {f"{TO_OUT}.lora_A.weight": zeros(2, 96), f"{TO_OUT}.lora_B.weight": zeros(96, 3)},
        f"{TO_OUT!r}: lora_B and lora_A [96, 3] and [2, 96] do not multiply to one matrix. {AGAIN}",
    ),
    "rank 0": (pair(TO_OUT, rank=0), f"changes nothing of Lumina Image 2.0: skipped 2 keys, as '{TO_OUT}.lora_A.wei"),
    "half a pair of rank 0": (
        pair(TO_OUT) | {f"{TO_OUT}.lora_A.weight": zeros(0, 96)}, "do not multiply to one matrix",
    ),
    "another width": (
        kohya(KOHYA, (3840, 2304)),
        f"{KOHYA!r} is [192, 96] in the model, and the file's tensors make [3840, 2304]. Was it trained on another "
        "version or size of the model?",
    ),
    "queries alone in the fused layer": (pair(COMFYUI, shape=OUT), "is [192, 96] in the model, and"),
    "LoKr of another size": (roles(TO_OUT, **LOKR), f"{TO_OUT!r} is [96, 96] in the model"),
    "LoKr of three axes": (roles(COMFYUI, **LOKR | {"lokr_w1": (12, 4, 1)}), "lokr_w1 [12, 4, 1] is no matrix"),
    "LoHa of two sizes": (roles(COMFYUI, **LOHA | {"hada_w2_a": (96, 2)}), "hada_w1 makes [192, 96] and hada_w2 ["),
    "a magnitude of another size": (DORA | roles(TO_OUT, magnitude=(3,)), "magnitude [3] does not fit lora_B [96, 2]"),
    "a dora_scale of another size": (
        pair(TO_OUT) | roles(TO_OUT, dora_scale=(5, 1)), f"{TO_OUT!r}: dora_scale [5, 1] does not fit [96, 96]",
    ),
    "a difference of three axes": (roles(TO_OUT, diff=(2, 2, 2)), f"{TO_OUT!r} is [96, 96] in the model, and the fi"),
    "a pair on a norm": (
        pair("diffusion_model.layers.0.attention_norm1"), "'diffusion_model.layers.0.attention_norm1' is [96] in the m",
    ),
    "an alpha of two values": (pair(TO_OUT) | roles(TO_OUT, alpha=(2,)), ".alpha' has shape [2], not one value"),
    "integers": ({key: value.to(torch.int8) for key, value in pair(TO_OUT).items()}, "is I8; a LoRA is F32, BF16 or F"),
    "an infinite alpha": (
        pair(TO_OUT) | {f"{TO_OUT}.alpha": torch.tensor(torch.inf)}, f"holds NaN or Inf in '{TO_OUT}.alpha'",
    ),
    "an infinite alpha with a rank": (
        roles(COMFYUI, **LOKR) | {f"{COMFYUI}.alpha": torch.tensor(torch.inf)}, f"NaN or Inf in '{COMFYUI}.alpha'",
    ),
    # two of something in one file
    "LoRA and half a LoKr on one layer": (pair(TO_OUT) | roles(TO_OUT, lokr_w1=(2, 2)), f"{TO_OUT!r} lacks lokr_w2"),
    "a dora_scale of two changes": (
        pair(TO_OUT) | roles(TO_OUT, diff=(96, 96), dora_scale=(96, 1)),
        f"mixes formats: {TO_OUT!r} has diff, dora_scale, lora_A, lora_B. {AGAIN}",
    ),
    "full rank with dora_scale": (
        roles(TO_OUT, diff=(96, 96), dora_scale=(96, 1)), f"mixes formats: {TO_OUT!r} is difference with a dora_scale",
    ),
    "one layer in kohya's and in ComfyUI's name": (
        kohya(f"lora_unet_{TO_OUT[16:].replace('.', '_')}") | pair(TO_OUT),
        f"of 'layers.0.attn.to_out.0.weight' twice, by '{TO_OUT}.lora_A.weight' and 'lora_unet_layers_0_att",
    ),
    "fused and split": (
        pair(COMFYUI, shape=QKV) | pair("diffusion_model.layers.0.attn.to_q"),
        "changes rows 0 to 95 of 'layers.0.attn.to_q.weight' twice, by 'layers.0.attention.qkv' and 'layers.0.attn.to_",
    ),
    "two names of one matrix": (
        pair(TO_OUT) | pair(TO_OUT, "lora_down", "lora_up"),
        f"has both '{TO_OUT}.lora_A.weight' and '{TO_OUT}.lora_down.weight', which mean one. {AGAIN}",
    ),
    # what is known and not applied, or not known
    "Tucker LoRA of no kernel": (
        kohya(KOHYA, QKV) | roles(f"{KOHYA}.lora_mid", weight=(2, 2)), "lora_mid [2, 2] does not fit between [2, 192]",
    ),
    "Tucker LoRA of a kernel for a linear layer": (
        kohya(KOHYA, QKV) | roles(f"{KOHYA}.lora_mid", weight=(2, 2, 3, 3)), "file's tensors make [192, 96, 3, 3]",
    ),
    "half of a Tucker LoHa": (roles(COMFYUI, **LOHA, hada_t1=(2, 2, 3, 3)), f"{COMFYUI!r} lacks hada_t2"),
    "Tucker LoKr of another rank": (roles(COMFYUI, **LOKR, lokr_t2=(2, 2, 3, 3)), "lokr_t2 [2, 2, 3, 3] does not fit"),
    "BOFT": (roles(COMFYUI, boft_R=(2, 2)), "holds BOFT of PEFT, which is not applied. This pack applies LoRA, DoRA, "),
    "an unknown suffix": (
        pair(TO_OUT) | roles(TO_OUT, wonder=(2,)),
        f"has 1 of 3 keys that are of no known kind: '{TO_OUT}.wonder'. This pack applies LoRA",
    ),
    "a bias where there is none": (roles(TO_OUT, diff_b=(96,)), f"{TO_OUT!r} has no bias in the model"),
    # of another model
    "a text encoder with more layers": (
        kohya("lora_te_layers_25_mlp_up_proj", (64, 32)) | kohya("lora_te_layers_0_mlp_up_proj", (64, 32)),
        "1 of its 2 layers are not in the model, the first is 'lora_te_layers_25_mlp_up_proj'. Was it trained on "
        "another version or size of the model?\n  lora_te_layers_25: 1 layer",
    ),
    "an embedding table": (pair("text_encoder.embed_tokens", shape=(32, 32)), "none of its 2 keys names a layer of it"),
    "FLUX": (
        kohya("lora_unet_double_blocks_0_img_attn_qkv"),
        "is no LoRA for Lumina Image 2.0: none of its 3 keys names a layer of it. It looks like one for FLUX.1. Choose "
        "a LoRA that was trained on Lumina Image 2.0.",
    ),
    "Z-Image": (
        pair("diffusion_model.layers.0.feed_forward.w1") | pair("diffusion_model.layers.0.adaLN_modulation.0"),
        "'diffusion_model.layers.0.adaLN_modulation.0'. It looks like one for Z-Image.",
    ),
    "SDXL": (kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "It looks like one for SDXL."),
}  # fmt: skip


def _read_whole(path: Path, checkpoint: Checkpoint) -> None:
    file = open_lora(path, path.name, MODEL, checkpoint)
    for part in file.parts:
        read_lora(file, part)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_names_what_is_wrong(checkpoint, tmp_path, name):
    tensors, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(LoraError) as caught:
        _read_whole(path, checkpoint)
    assert message in str(caught.value), str(caught.value)
    assert str(caught.value).startswith("'bad.safetensors'")


# ---- generated key sets -------------------------------------------------------------------------------------------


def _loha(tensors: Tensors) -> Tensors:
    """The same layers as LoHa."""
    names = {key.removesuffix(".lora_B.weight"): len(v) for key, v in tensors.items() if key.endswith("lora_B.weight")}
    columns = {name: tensors[f"{name}.lora_A.weight"].shape[1] for name in names}
    return {
        key: value
        for name, rows in names.items()
        for key, value in roles(
            name, hada_w1_a=(rows, 2), hada_w1_b=(2, columns[name]), hada_w2_a=(rows, 2), hada_w2_b=(2, columns[name])
        ).items()
    }


@pytest.fixture(scope="module")
def good(models: Path, tmp_path_factory) -> dict[str, Header]:
    """Headers of good files, by format."""
    folder, model = tmp_path_factory.mktemp("good"), models / "diffusers" / "tiny"
    pairs = make_pairs(model, embedders=True)
    files = {
        "kohya": write_kohya(folder / "kohya.safetensors", model, text_encoder=True, embedders=True),
        "ComfyUI": write_comfyui(folder / "comfyui.safetensors", pairs),
        "AI Toolkit": write_diffusers(folder / "toolkit.safetensors", pairs, model),
        "LoHa": folder / "loha.safetensors",
    }
    save_file(_loha(load_file(files["ComfyUI"])), files["LoHa"])
    return {name: read_header(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def read(checkpoint) -> Callable[[dict[str, TensorInfo]], Contents]:
    """A header's tensors to layers."""
    names = names_of(MODEL.id, checkpoint)
    return lambda tensors: recognise(Header(Path("x"), tensors, {}), "x", MODEL.title, names)


def skipped(contents: Contents) -> int:
    """How many keys are told as skipped."""
    return sum(int(note.split()[1]) for note in contents.notes)


def module_of(key: str) -> str:
    for end in (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"):
        key = key.removesuffix(end)
    return key.rpartition(".")[0] if ".hada_" in key else key


def assert_all_used(contents: Contents, tensors: dict[str, TensorInfo]) -> None:
    """Every key of the file changes something or is told as skipped, and nothing is changed twice in one way."""
    used = {key for layer in contents.layers for key in layer.keys.values()}
    assert len(used) + skipped(contents) == len(tensors)
    ways = [(layer.part, layer.parameter, layer.kind) for layer in contents.layers]
    assert len(set(ways)) == len(ways)


FORMATS = st.sampled_from(["kohya", "ComfyUI", "AI Toolkit", "LoHa"])


@settings(max_examples=60)
@given(data=st.data(), form=FORMATS)
def test_any_subset_of_modules_loads_and_changes_these_modules(good, read, data, form):
    tensors = good[form].tensors
    whole = {frozenset(layer.keys.values()): set() for layer in read(dict(tensors)).layers}
    for layer in read(dict(tensors)).layers:
        whole[frozenset(layer.keys.values())].add((layer.part, layer.parameter))
    modules = sorted({module_of(key) for key in tensors})
    kept = data.draw(st.sets(st.sampled_from(modules), min_size=1))
    part = {key: info for key, info in tensors.items() if module_of(key) in kept}
    contents = read(part)
    assert_all_used(contents, part)
    assert not contents.notes
    expected = set().union(*(found for keys, found in whole.items() if keys <= part.keys()))
    assert {(layer.part, layer.parameter) for layer in contents.layers} == expected


# ways to damage one key
ENDINGS = [
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora_A.default.weight", ".alpha",
    ".diff", ".diff_b", ".magnitude", ".dora_scale", ".lokr_w1", ".lokr_w2_a", ".hada_w1_a", ".hada_t1",
    ".lora_mid.weight", ".x", "",
]  # fmt: skip
PREFIXES = [
    "",
    "transformer.",
    "diffusion_model.",
    "lora_unet_",
    "lora_te_",
    "base_model.model.",
    "text_encoder.",
    "unet.",
]


@settings(max_examples=200)
@given(data=st.data(), form=FORMATS, way=st.sampled_from(["removed", "renamed", "doubled", "other shape"]))
def test_a_file_with_one_odd_key_is_refused_or_wholly_applied(good, read, data, form, way):
    tensors = dict(good[form].tensors)
    key = data.draw(st.sampled_from(sorted(tensors)))
    info = tensors[key] if way == "doubled" else tensors.pop(key)
    module = module_of(key)
    bare = next((module.removeprefix(prefix) for prefix in PREFIXES if prefix and module.startswith(prefix)), module)
    if way == "other shape":
        tensors[key] = TensorInfo(info.dtype, data.draw(st.lists(st.integers(0, 200), max_size=3).map(tuple)))
    elif way != "removed":
        other = st.builds(
            lambda prefix, name, ending: prefix + name + ending,
            st.sampled_from(PREFIXES),
            st.sampled_from([bare, bare.replace("_", "."), bare.replace(".", "_"), bare.replace("0", "7")]),
            st.sampled_from([*ENDINGS, key.removeprefix(module)]),
        )
        tensors[data.draw(st.one_of(other, st.text(max_size=20).map(lambda text: key + text)))] = info
    try:
        contents = read(tensors)
    except LoraError as error:
        assert str(error).startswith("'x'")
        return
    assert_all_used(contents, tensors)


SHAPES = st.lists(st.integers(0, 5).map(lambda n: n * 48), max_size=3).map(tuple)


@settings(max_examples=200)
@given(data=st.data())
def test_garbage_is_refused_by_name(good, read, data):
    names = sorted({module_of(key) for header in good.values() for key in header.tensors})
    name = st.builds(
        lambda a, b, c: a + b + c, st.sampled_from(PREFIXES), st.sampled_from(["", *names]), st.text(max_size=5)
    )
    keys = st.builds(lambda a, b: a + b, st.one_of(name, st.sampled_from(names), st.text()), st.sampled_from(ENDINGS))
    info = st.builds(TensorInfo, st.sampled_from(["F32", "BF16", "I64", "F8_E4M3"]), SHAPES)
    tensors = data.draw(st.dictionaries(keys, info, max_size=6))
    try:
        assert_all_used(read(tensors), tensors)
    except LoraError as error:
        assert str(error).startswith("'x'")


def test_a_file_that_was_replaced_by_a_worse_one_is_noticed(checkpoint, models, tmp_path):
    path = Path(shutil.copy(models / "loras" / "tiny.safetensors", tmp_path / "x.safetensors"))
    assert open_lora(path, path.name, MODEL, checkpoint).layers
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AITKError, match=r"'x\.safetensors' is cut off"):
        open_lora(path, path.name, MODEL, checkpoint)
