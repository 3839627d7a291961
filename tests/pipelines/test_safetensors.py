"""Safetensors headers: whatever happens to a file, the error is ours and names it."""

from __future__ import annotations

import json

import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files.safetensors import read_header, read_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, {"who": "test"})


def test_a_header_tells_names_shapes_and_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(WHOLE)
    header = read_header(path)
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a": ("F32", (2, 3)), "b": ("BF16", (4,)),
    }  # fmt: skip
    assert header.metadata == {"who": "test"}
    read = dict(read_tensors(path, ["a"]))
    assert torch.equal(read["a"], load_file(path)["a"])
    assert read.keys() == {"a"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(min_value=0, max_value=len(WHOLE) - 1))
def test_every_cut_is_noticed(tmp_path, length):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(FileError, match=r"^'cut\.safetensors'"):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_other_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except FileError as error:
        assert str(error).startswith("'noise.safetensors'")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entry=st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(-5, 50), max_size=3),
        lambda values: (
            st.lists(values, max_size=3)
            | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), values)
            | st.fixed_dictionaries({"dtype": st.just("F32"), "shape": values, "data_offsets": values})
        ),
    ),
    key=st.sampled_from(["a", "__metadata__"]),
)
def test_a_header_that_is_json_but_no_header_is_refused(tmp_path, entry, key):
    whole = {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}
    # with the whole tensor beside it, 28 bytes would be right: the file has 24
    header = json.dumps({"b": whole, key: entry}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(FileError, match=r"^'odd\.safetensors'"):
        read_header(path)


def test_what_the_library_accepts_is_accepted(tmp_path):
    path = tmp_path / "all.safetensors"
    dtypes = (torch.float64, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.int64)
    save_file({str(dtype): torch.zeros(3, 0 if dtype == torch.bool else 2, dtype=dtype) for dtype in dtypes}, path)
    assert len(read_header(path).tensors) == len(dtypes)


@pytest.mark.parametrize("length", [640, 66176, 0x4B50])
def test_a_header_length_that_looks_like_a_pickle_s_or_a_zip_s_first_bytes_is_fine(tmp_path, length):
    header = json.dumps({"__metadata__": {"pad": ""}})
    header = header.replace('""', '"' + "x" * (length - len(header)) + '"').encode()
    assert len(header) == length
    path = tmp_path / "long.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header)
    assert read_header(path).tensors == {}
