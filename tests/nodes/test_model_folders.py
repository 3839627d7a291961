"""diffusers' folders as tools save them: variants, shards with and without an index, links, quantised ones."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.containers import write_ae, write_dit, write_gemma2
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.untrusted_names import list_files, resolve_name
from rendering import render
from safetensors.torch import load_file

STEMS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}


def _parts(folder: Path) -> list[tuple[Path, str]]:
    return [(folder / part / f"{stem}.safetensors", stem) for part, stem in STEMS.items()]


def _variant(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file, stem in _parts(folder):
            file.rename(file.with_name(f"{stem}.{name}.safetensors"))

    return change


def _shards(shard: str, index: str | None) -> Callable[[Path], None]:
    """Every part in two shards, by names with ``{stem}`` and ``{number}``."""

    def change(folder: Path) -> None:
        for file, stem in _parts(folder):
            tensors = load_file(file)
            names = list(tensors)
            weight_map = {}
            for number, own in enumerate((names[::2], names[1::2]), 1):
                name = shard.format(stem=stem, number=number)
                write_tensors(file.with_name(name), {key: tensors[key] for key in own}, {})
                weight_map |= dict.fromkeys(own, name)
            if index is not None:
                text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
                file.with_name(index.format(stem=stem)).write_text(text)
            file.unlink()

    return change


def _beside(name: str) -> Callable[[Path], None]:
    """Another variant beside the weights, of other values."""

    def change(folder: Path) -> None:
        for file, stem in _parts(folder):
            other = {key: torch.zeros_like(value) for key, value in load_file(file).items()}
            write_tensors(file.with_name(f"{stem}.{name}.safetensors"), other, {})

    return change


def _both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for own in changes:
            own(folder)

    return change


SAME = {
    "variant fp16": _variant("fp16"),
    "variant of one's own name": _variant("non_ema"),
    "variant, sharded as diffusers does": _shards(
        "{stem}-0000{number}-of-00002.fp16.safetensors", "{stem}.safetensors.index.fp16.json"
    ),
    "variant, sharded as transformers does": _shards(
        "{stem}.fp16-0000{number}-of-00002.safetensors", "{stem}.safetensors.index.fp16.json"
    ),
    "variant, sharded, old name of the index": _shards(
        "{stem}.fp16-0000{number}-of-00002.safetensors", "{stem}.fp16.safetensors.index.json"
    ),
    "shards": _shards("{stem}-0000{number}-of-00002.safetensors", "{stem}.safetensors.index.json"),
    "shards without an index": _shards("{stem}-0000{number}-of-00002.safetensors", None),
    "shards of a variant without an index": _shards("{stem}.bf16-0000{number}-of-00002.safetensors", None),
    "plain weights beside a variant": _beside("fp16"),
    "of two variants, the one with more bits": _both(_variant("fp32"), lambda folder: _zeros(folder, "fp32", "fp16")),
}


def _zeros(folder: Path, source: str, target: str) -> None:
    for file, stem in _parts(folder):
        tensors = load_file(file.with_name(f"{stem}.{source}.safetensors"))
        other = {key: torch.zeros_like(value) for key, value in tensors.items()}
        write_tensors(file.with_name(f"{stem}.{target}.safetensors"), other, {})


@pytest.fixture
def own(host, models: Path, tmp_path: Path) -> Path:
    """A models folder with a copy of the tiny checkpoint that a test may change."""
    shutil.copytree(models / "diffusers" / "tiny", tmp_path / "own" / "diffusers" / "tiny")
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    return tmp_path / "own" / "diffusers" / "tiny"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for source in Checkpoint.open(folder, "tiny", find_model("lumina2").files).sources:
        for name, value in source.read(source.tensor_infos()):
            assert isinstance(value, torch.Tensor)
            found[f"{source.component}.{name}"] = value
    return found


@pytest.mark.parametrize("case", SAME)
def test_the_same_weights_are_read(own, case):
    expected = _weights(own)
    SAME[case](own)
    found = _weights(own)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_sharded_variant_gives_the_same_picture(own):
    expected = render({"model": "lumina2", "weights": "tiny"}, steps=1)
    SAME["variant, sharded as diffusers does"](own)
    assert torch.equal(render({"model": "lumina2", "weights": "tiny"}, steps=1)[0], expected[0])


def test_a_variant_beside_the_weights_does_not_make_another_checkpoint(own):
    def fingerprint() -> str:
        return Checkpoint.open(own, "tiny", find_model("lumina2").files).fingerprint()

    before = fingerprint()
    _beside("fp16")(own)
    assert fingerprint() == before


def _config(part: str, **change: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BAD = {
    "bitsandbytes, 4 bits": (
        _config("transformer", quantization_config=NF4),
        "'tiny/transformer' is quantised (bitsandbytes 4-bit, nf4), which is not read. Get the unquantised folder",
    ),
    "bitsandbytes of an older library": (
        _config("text_encoder", quantization_config={"load_in_8bit": True, "llm_int8_threshold": 6.0}),
        "'tiny/text_encoder' is quantised (bitsandbytes 8-bit)",
    ),
    "another method": (
        _config("text_encoder", quantization_config={"quant_method": "gptq", "bits": 4}),
        "'tiny/text_encoder' is quantised (gptq)",
    ),
    "a method of a megabyte": (
        _config("transformer", quantization_config={"quant_method": "x" * 1_000_000}),
        "is quantised (" + "x" * 40 + ")",
    ),
    "one shard of two, no index": (
        lambda folder: (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(
            folder / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
        ),
        "'tiny' is incomplete: transformer has 1 of 2 parts and no index",
    ),
    "pickles alone": (
        lambda folder: (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(
            folder / "transformer" / "diffusion_pytorch_model.fp16.bin"
        ),
        "'tiny' has no safetensors weights in transformer. It has diffusion_pytorch_model.fp16.bin, which is not read",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(own, case):
    change, message = BAD[case]
    change(own)
    with pytest.raises(AITKError) as caught:
        render({"model": "lumina2", "weights": "tiny"}, steps=1)
    assert message in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 1000


def test_links_are_followed_wherever_they_lead(own, models, tmp_path):
    """A store of models that several programs share is linked into ComfyUI's folders."""
    own_models, store = own.parent.parent, tmp_path / "store"
    outside = make_lora(store / "Lora" / "outside.safetensors", models / "diffusers" / "tiny")
    shutil.copytree(models / "diffusers" / "tiny", store / "hub" / "snapshots" / "0123", symlinks=True)
    loras = own_models / "loras"
    loras.mkdir()
    (loras / "link.safetensors").symlink_to(outside)
    (loras / "Lora").symlink_to(store / "Lora", target_is_directory=True)
    (loras / "again").symlink_to(store / "Lora", target_is_directory=True)
    (loras / "gone.safetensors").symlink_to(store / "gone.safetensors")
    # what lies in itself
    (store / "Lora" / "loop").symlink_to(loras, target_is_directory=True)
    make_lora(loras / "tiny.safetensors", own)
    make_lora(loras / "sub" / "inside.safetensors", models / "diffusers" / "tiny")
    choices = NODE_CLASS_MAPPINGS["ApplyAITKLoRA"].INPUT_TYPES()["required"]["lora_name"][0]
    named = ["Lora/outside.safetensors", "again/outside.safetensors", "link.safetensors", "sub/inside.safetensors"]
    assert choices == [*named, "tiny.safetensors"]
    # a folder of links into a cache
    snapshot = own_models / "diffusers" / "snapshot"
    snapshot.symlink_to(store / "hub" / "snapshots" / "0123", target_is_directory=True)
    folder = own_models / "diffusers" / "links"
    for file in (store / "hub" / "snapshots" / "0123").rglob("*.*"):
        target = folder / file.relative_to(store / "hub" / "snapshots" / "0123")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    weights = NODE_CLASS_MAPPINGS["LoadAITKModel"].INPUT_TYPES()["required"]["weights"][0]
    assert {"snapshot", "links"} <= {*weights}
    load = {"model": "lumina2", "weights": "tiny"}
    expected = render(load, lora={"lora_name": "tiny.safetensors"}, steps=1)
    for name, lora in (("snapshot", "again/outside.safetensors"), ("links", "link.safetensors")):
        found = render(load | {"weights": name}, lora={"lora_name": lora}, steps=1)
        assert torch.equal(found[0], expected[0]), name


def test_links_among_folders_do_not_make_names_without_end(tmp_path):
    folders = [tmp_path / f"{index}" for index in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "x.safetensors").write_text("")
    for folder in folders:
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other, target_is_directory=True)
    assert 12 < len(list_files([tmp_path], [".safetensors"])) < 500
    with pytest.raises(AITKError, match="is refused"):
        resolve_name("0/../../x", [tmp_path], "LoRA")


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_one_file_in_two_kinds_of_folders_is_no_conflict(own, linked):
    kinds = own.parent.parent
    file = write_dit(kinds / "checkpoints" / "one.safetensors", own)
    write_gemma2(kinds / "text_encoders" / "gemma.safetensors", own)
    write_ae(kinds / "vae" / "ae.safetensors", own)
    if linked == "folder":
        (kinds / "diffusion_models").symlink_to(kinds / "checkpoints", target_is_directory=True)
    else:
        (kinds / "diffusion_models").mkdir()
        (kinds / "diffusion_models" / "one.safetensors").symlink_to(file)
    load = {"model": "lumina2", "dtype": "float32", "weights": "one.safetensors"}
    node = NODE_CLASS_MAPPINGS["LoadAITKModel"]()
    parts = {"text_encoder": "gemma.safetensors", "vae": "ae.safetensors"}
    (pipeline,) = node.load(**load, **parts)
    assert pipeline.checkpoint.source("transformer").name == "one.safetensors"
    if linked == "file":
        (kinds / "diffusion_models" / "one.safetensors").unlink()
        shutil.copy(file, kinds / "diffusion_models")
        with pytest.raises(AITKError, match="is in diffusion_models and in checkpoints: rename one"):
            node.load(**load, **parts)


def test_a_folder_that_fails_is_named_without_its_path(own, monkeypatch):
    def failing(self: Path):
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(Path, "iterdir", failing)
    with pytest.raises(AITKError, match=r"'tiny': its folder transformer cannot be read: Input/output error\.$"):
        Checkpoint.open(own, "tiny", find_model("lumina2").files)
