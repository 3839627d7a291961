"""PyTorch's own files: tensors come out exact, code is never run, and a damaged file is named."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files.torch_pickle import read_header, read_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.randn(40).to(torch.bfloat16),
    "c": torch.arange(12.0).reshape(3, 4).T[1:],
    "d": nn.Parameter(torch.ones(2, dtype=torch.float16)),
    "e": torch.zeros(0, 5),
    "f": torch.tensor([1, 2], dtype=torch.int64),
    "g": torch.ones(4, dtype=torch.float8_e4m3fn),
}
# a checkpoint has more than tensors
MORE = {"epoch": 3, "note": "x", 7: torch.ones(1), "inner": {"a": torch.ones(2)}, "state_dict": None}


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("echo ran",)


def saved(content, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr("x/" + name.replace("_", "."), content)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return file.getvalue()


LAYOUTS = {
    "plain": saved(TENSORS),
    "with more": saved({**MORE, **TENSORS}),
    "wrapped": saved({"state_dict": {**MORE, **TENSORS}, "epoch": 3, "z": torch.ones(1)}),
    # which knows no float8
    "before 1.6": saved({**MORE, **{name: value for name, value in TENSORS.items() if name != "g"}}, legacy=True),
    "compressed": compressed(saved(TENSORS)),
}


INFOS = {
    "a": ("F32", (2, 3)), "b": ("BF16", (40,)), "c": ("F32", (3, 3)), "d": ("F16", (2,)), "e": ("F32", (0, 5)),
    "f": ("I64", (2,)), "g": ("F8_E4M3", (4,)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, layout):
    path = tmp_path / "x.pth"
    path.write_bytes(LAYOUTS[layout])
    header = read_header(path)
    expected = {name: info for name, info in INFOS.items() if layout != "before 1.6" or name != "g"}
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == expected
    assert (header.path, header.metadata) == (path, {})
    read = dict(read_tensors(path))
    assert read.keys() == expected.keys()
    for name, value in read.items():
        assert value.dtype == TENSORS[name].dtype
        assert torch.equal(value.float(), TENSORS[name].float())
        assert not value.requires_grad
    assert [name for name, _ in read_tensors(path, ["b", "a"])] == ["b", "a"]
    with pytest.raises(FileError, match=r"^'x\.pth' was changed while it was read"):
        next(read_tensors(path, ["gone"]))


def test_a_large_file_is_read_in_parts(tmp_path, monkeypatch):
    from comfyui_aitk.pipelines.files import torch_pickle

    monkeypatch.setattr(torch_pickle, "_OPEN_FOR", 1)
    path = tmp_path / "x.pth"
    for layout in ("plain", "before 1.6"):
        path.write_bytes(LAYOUTS[layout])
        assert [name for name, _ in read_tensors(path)] == list(read_header(path).tensors)


def test_a_replaced_file_has_its_own_header(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(saved({"a": torch.ones(2)}))
    assert read_header(path).tensors["a"].shape == (2,)
    path.write_bytes(saved({"a": torch.ones(5000)}))
    assert read_header(path).tensors["a"].shape == (5000,)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at Linux' list of maps")
def test_no_map_of_the_file_stays_open(tmp_path):
    path = tmp_path / "mapped.pth"
    path.write_bytes(saved({"a": torch.ones(100_000)}))
    read_header(path)
    for _, value in read_tensors(path):
        assert "mapped.pth" in Path("/proc/self/maps").read_text()
        del value
    assert "mapped.pth" not in Path("/proc/self/maps").read_text()


PROGRAM = io.BytesIO()
torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), PROGRAM)
REFUSED = {
    "a command": (saved({"a": torch.ones(2), "x": Command()}), r"is refused: .*code .*\(\w+\.system\).*Nothing of it"),
    "a command, before 1.6": (saved({"x": Command()}, legacy=True), r"is refused: .*\.system\).*Nothing of it was run"),
    "a command alone": (pickle.dumps(Command(), protocol=2), r"is refused: .*\.system\).*Nothing of it was run"),
    "an object": (saved({"a": torch.ones(2), "x": argparse.Namespace()}), r"is refused: .*\(argparse\.Namespace\)"),
    "a module": (saved(nn.Linear(2, 2)), r"is refused: .*\(torch\.nn\.modules\.linear\.Linear\)"),
    "a program": (PROGRAM.getvalue(), "is a TorchScript program"),
    "another pickle": (pickle.dumps({"a": 1}, protocol=4), "is damaged, or a pickle of another program"),
    "an old pickle": (pickle.dumps({"a": 1}, protocol=2), "is cut off or damaged"),
    "empty": (b"", "its content is of an unknown kind"),
    "noise": (b"hello world" * 50, "it is a text"),
    "a web page": (b"<!DOCTYPE html><html>", "it is an HTML page"),
    "gguf": (b"GGUF" + bytes(60), "it is a GGUF file"),
    "safetensors": ((2).to_bytes(8, "little") + b"{}", "it is a safetensors file"),
    "another archive": (zipped(readme_txt=b"hi"), "a zip archive of something else"),
    "a hollow archive": (zipped(data_pkl=b"hi"), "is cut off or damaged"),
    "cut": (LAYOUTS["plain"][:-5], "is cut off: the end of its archive is missing"),
    "cut, before 1.6": (LAYOUTS["before 1.6"][:-5], "is cut off or damaged"),
    "no tensors": (saved({"epoch": 3}), "holds no tensors by name"),
    "a tensor alone": (saved(torch.ones(2)), "holds no tensors by name"),
    "a list": (saved([torch.ones(2)]), "holds no tensors by name"),
    "a sparse tensor": (saved({"a": torch.ones(2, 2).to_sparse()}), "'a' is sparse, quantised or without values"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_use_is_named_with_what_is_wrong(tmp_path, capfd, content, words):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"(?s)^'odd\.ckpt' .*{words}"):
        read_header(path)
    with pytest.raises(FileError, match=r"^'odd\.ckpt'"):
        list(read_tensors(path))
    assert "ran" not in capfd.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"^'no\.pt' cannot be read"):
        read_header(tmp_path / "no.pt")


@pytest.mark.parametrize("layout", ["plain", "before 1.6"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_cut_is_noticed(tmp_path, layout, data):
    whole = LAYOUTS[layout]
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FileError, match=r"^'cut\.pt'"):
        read_header(path)


@pytest.mark.parametrize("layout", ["plain", "before 1.6"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_our_error_or_a_readable_file(tmp_path, layout, data):
    changed = bytearray(LAYOUTS[layout])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(changed) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        changed[place] = value
    path = tmp_path / "noise.pt"
    path.write_bytes(changed)
    try:
        list(read_tensors(path))
    except FileError as error:
        assert str(error).startswith("'noise.pt'")


def test_no_pickle_is_read_with_a_pytorch_that_does_not_do_it_safely(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2)}, path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(FileError, match=r"'model.pth' is a pickle, and PyTorch 2.9.1\+cpu does not read those safely"):
        read_header(path)
