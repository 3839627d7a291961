"""Weights in their files' own pages: the same values, no file written to, nothing kept longer than its tensors."""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.nodes.sampler import engine as the_engine
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files import mapping
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.files.mapping import MAPS, is_mapped, mapped_files
from comfyui_aitk.pipelines.files.safetensors import read_tensors
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rendering import loaded
from safetensors.torch import load_file, save, save_file

REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "u8": torch.uint8, "f8": torch.float8_e4m3fn}


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own."""
    return shutil.copytree(models / "diffusers" / "tiny", tmp_path / "own")


def opened(folder: Path) -> PipelineHandle:
    return PipelineHandle("lumina2", Checkpoint.open(folder, "own", find_model("lumina2").files))


def pictures(engine: Engine, handle: PipelineHandle) -> torch.Tensor:
    return sample(engine, handle, REQUEST, SilentObserver()).images


def pieces(file: str = "") -> int:
    """How many are mapped now, of a file or of all: what other tests left behind may leave at any time."""
    gc.collect()
    return sum(not file or piece.file._name == file for piece in mapping._PIECES_IN_USE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.integers(0, 9000)), min_size=1, max_size=12),
    least=st.sampled_from([1, 4096, 5000, 100_000]),
    order=st.randoms(use_true_random=False),
    kept=st.booleans(),
)
def test_mapped_tensors_are_those_that_are_read(tmp_path, monkeypatch, shapes, least, order, kept):
    """In pieces of any size, asked for in any order, kept or not."""
    monkeypatch.setattr(mapping, "_LEAST", least)
    values = {
        f"{number}": torch.arange(size).to(torch.uint8).to(DTYPES[name]) for number, (name, size) in enumerate(shapes)
    }
    path = tmp_path / "any order.safetensors"
    save_file(values, path)
    names = list(values)
    order.shuffle(names)
    held = {}
    for name, value in read_tensors(path, names, maps=True):
        assert torch.equal(value.view(torch.uint8), values[name].view(torch.uint8))
        if kept:
            held[name] = value
    assert all(torch.equal(held[name].view(torch.uint8), values[name].view(torch.uint8)) for name in held)
    del held
    value = None
    assert pieces(path.name) == 0, "nothing is mapped that nobody holds"


def test_a_tensor_that_begins_at_an_odd_byte_is_read(tmp_path):
    """Headers of older files end anywhere."""
    values = {"a": torch.arange(6.0)}
    whole = save(values)
    length = int.from_bytes(whole[:8], "little")
    path = tmp_path / "odd.safetensors"
    path.write_bytes((length + 3).to_bytes(8, "little") + whole[8 : 8 + length] + b"   " + whole[8 + length :])
    ((_, value),) = read_tensors(path, maps=True)
    assert torch.equal(value, values["a"])
    assert not is_mapped(value)


def test_a_file_system_without_maps_is_read(tmp_path, monkeypatch):
    class Refused(mmap.mmap):
        def __new__(cls, *_: object, **__: object) -> Refused:
            raise OSError(19, "No such device")

    monkeypatch.setattr(mapping, "Piece", Refused)
    save_file({"a": torch.arange(6.0)}, tmp_path / "x.safetensors")
    ((_, value),) = read_tensors(tmp_path / "x.safetensors", maps=True)
    assert torch.equal(value, torch.arange(6.0))


def test_merges_leave_the_files_as_they_are_and_a_release_lets_go_of_them(folder, models):
    path = models / "loras" / "tiny.safetensors"
    handle = opened(folder)
    merged = handle.with_lora(LoraSpec(path.name, FileStamp.of(path), 0.8, "merged"))
    files = sorted(folder.rglob("*.safetensors"))
    before, others = [hashlib.sha256(file.read_bytes()).digest() for file in files], pieces()
    engine = Engine(PlainMachine())
    first = pictures(engine, handle)
    weights = dict(loaded(engine, "transformer").named_parameters())
    assert all(map(is_mapped, weights.values())), "the files hold bfloat16"
    stored = load_file(next(file for file in files if "transformer" in file.parts))
    assert all(torch.equal(value, stored[name]) for name, value in weights.items())
    assert not torch.equal(pictures(engine, merged), first)
    changed = dict(loaded(engine, "transformer").named_parameters())
    assert 0 < sum(map(is_mapped, changed.values())) < len(changed), "what is merged has memory of its own"
    assert torch.equal(pictures(engine, handle), first)
    assert engine.counters.tensors_restored == engine.counters.tensors_merged > 0
    # a change in place is private, too
    with torch.no_grad():
        next(iter(weights.values())).add_(1)
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before
    del weights, changed
    engine.release()
    assert pieces() <= others


def test_what_is_cast_as_it_is_read_is_not_mapped(checkpoint):
    engine, before = Engine(PlainMachine()), pieces()
    pictures(engine, PipelineHandle("lumina2", checkpoint, "float32"))
    assert pieces() <= before
    assert not mapped_files(loaded(engine, "transformer").parameters())


def test_files_are_read_where_the_host_forbids_maps(checkpoint, host, monkeypatch):
    monkeypatch.setattr(type(host), "maps_files", lambda self: False)
    handle, mapped = PipelineHandle("lumina2", checkpoint), Engine(PlainMachine())
    expected = pictures(mapped, handle)
    monkeypatch.setattr(MAPS, "allowed", True)
    the_engine.cache_clear()
    try:
        engine = the_engine()
        assert torch.equal(pictures(engine, handle), expected)
        assert not mapped_files(loaded(engine, "transformer").parameters())
    finally:
        the_engine.cache_clear()


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_file_that_is_overwritten_while_it_is_used_is_told_and_the_next_run_has_the_new_one(folder, part):
    """In place: a file that takes its place by its name changes nothing that is mapped."""
    handle = opened(folder)
    (path,) = (folder / part).glob("*.safetensors")
    request = replace(REQUEST, prompt="a dog")
    first = sample(Engine(PlainMachine()), handle, request, SilentObserver()).images
    engine = Engine(PlainMachine())
    pictures(engine, handle)
    other = {name: -value for name, value in load_file(path).items()}

    class Overwriting(SilentObserver):
        def stage(self, text: str) -> None:
            if text.startswith("encoding text" if part == "text_encoder" else "sampling"):
                with path.open("r+b") as file:
                    file.write(save(other, {"format": "pt"}))
                    os.fsync(file.fileno())

    with pytest.raises(FileError, match=rf"'{path.name}' was changed while it was in use\. Run again"):
        sample(engine, handle, request, Overwriting())
    new = opened(folder)
    found = sample(engine, new, request, SilentObserver()).images
    assert not torch.equal(found, first)
    assert torch.equal(found, sample(Engine(PlainMachine()), new, request, SilentObserver()).images)
