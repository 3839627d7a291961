"""A small file read as a whole: runs of tensors that lie behind each other in one dtype."""

import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files import spans
from comfyui_aitk.pipelines.files.safetensors import read_in_runs
from comfyui_aitk.pipelines.files.spans import METER
from safetensors.torch import save_file

TENSORS = {
    "a": torch.randn(3, 5).bfloat16(),
    "b": torch.randn(7).bfloat16(),
    "alpha": torch.tensor(2.0),
    "c": torch.randn(4, 2),
    "empty": torch.zeros(0, 4),
    "half": torch.randn(2, 2).half(),
    "mark": torch.tensor([1], dtype=torch.int64),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("names", [list(TENSORS), ["half", "a"], ["b"], ["empty"], []])
@pytest.mark.parametrize("at_once", [1 << 25, 7])
def test_every_tensor_is_as_stored(path, names, at_once, monkeypatch):
    monkeypatch.setattr(spans, "_AT_ONCE", at_once)
    before, found = METER.bytes, {}
    for whole, run in read_in_runs(path, names, lambda: None):
        assert {value.dtype for value in run.values()} == {whole.dtype}
        assert sum(value.numel() for value in run.values()) == whole.numel()
        found |= run
    assert found.keys() == set(names)
    assert all(torch.equal(found[name], TENSORS[name]) for name in names)
    assert METER.bytes - before >= sum(TENSORS[name].nbytes for name in names)


def test_a_tensor_begins_where_one_of_its_own_would(path):
    # an alpha moves what follows it by four bytes, and a product of matrices rounds otherwise there
    found = {name: value for _, run in read_in_runs(path, list(TENSORS), lambda: None) for name, value in run.items()}
    assert {value.data_ptr() % 64 for value in found.values() if value.numel()} == {0}


def test_tensors_of_one_dtype_are_one_run_where_nothing_is_between(path):
    runs = [set(run) for _, run in read_in_runs(path, list(TENSORS), lambda: None)]
    assert {"a", "b"} in runs
    assert {"alpha", "c"} <= max(runs, key=lambda run: "c" in run)


def test_reading_can_be_interrupted_and_a_missing_tensor_is_told(path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(read_in_runs(path, ["a"], stop))
    with pytest.raises(FileError, match="was changed while it was read"):
        list(read_in_runs(path, ["no such"], lambda: None))
