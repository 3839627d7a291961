"""What a file says of itself is checked before memory or time follows it; what is said of it is short and names it."""

from __future__ import annotations

import errno
import gzip
import json
import struct
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files import read_header, read_tensors
from safetensors.torch import save

BODY = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def _file(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _gguf(tensors: int, metadata: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, metadata) + rest


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


METADATA = {
    "numbers": ({"step": 3, "scale": 0.5}, {"step": "3", "scale": "0.5"}),
    "objects": ({"config": {"rank": [1, None]}}, {"config": '{"rank": [1, null]}'}),
    "truth and nothing": ({"done": True, "none": None}, {"done": "true", "none": "null"}),
    "half a surrogate": ({"title": "a\ud83db"}, {"title": "a?b"}),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_other_kinds_than_text_are_read(tmp_path, case):
    metadata, read = METADATA[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(_file({"__metadata__": metadata, **BODY}, struct.pack("<2f", 1.0, 2.0)))
    assert read_header(path).metadata == read
    assert torch.equal(dict(read_tensors(path))["a"], torch.tensor([1.0, 2.0]))


BAD = {
    "a shape of a million entries": (
        _file({"a": {"dtype": "F32", "shape": [1] * 1_000_000, "data_offsets": [0, 4]}}), "entry for 'a' cannot",
    ),
    "a number of 4,000 digits": (
        _file(b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 4000 + b'], "data_offsets": [0, 8]}}'), "entry for 'a'",
    ),
    "a number of 5,000 digits": (
        _file(b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 5000 + b'], "data_offsets": [0, 8]}}'), "not valid JSON",
    ),
    "a shape that overflows": (
        _file({"a": {"dtype": "F32", "shape": [1 << 62] * 8, "data_offsets": [0, 8]}}), "'a' has 8 bytes",
    ),
    "infinity": (_file(b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}'), "entry for 'a'"),
    "not a number": (_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [NaN, 8]}}'), "entry for 'a'"),
    "numbers as text": (_file({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}), "entry for 'a'"),
    "a negative shape": (_file({"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}), "entry for 'a'"),
    "a dtype of a megabyte": (
        _file({"a": {"dtype": "F" * 1_000_000, "shape": [2], "data_offsets": [0, 8]}}), "entry for 'a' cannot",
    ),
    "a name of a megabyte": (
        _file({"n" * 1_000_000: BODY["a"]}), "the name of a tensor has 1,000,000 letters. It begins with 'nnn",
    ),
    "200,000 tensors": (
        _file({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}, b""),
        "its header names 200,000 tensors",
    ),
    "deep JSON": (_file(b"[" * 100_000), "not valid JSON"),
    "deep metadata": (_file(b'{"__metadata__": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), "not valid JSON"),
}  # fmt: skip

ANSWERS = {
    "JSON": (b'{"error": "Invalid credentials in Authorization header"}', "a JSON text (a server's answer"),
    "short JSON": (b'{"abcd":{"x": 1, "y": [1, 2, 3]}, "z": "and so on"}', "a JSON text (a server's answer"),
    "a list": (b'[{"message": "not found"}]', "a JSON text (a server's answer"),
    "text": (b"Access to model x is restricted. You must be authenticated.", "a text (a server's answer"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text (a server's answer"),
    "XML without a declaration": (b"<Error><Code>AccessDenied</Code></Error>" * 2, "an XML text"),
    "a mark of the byte order and HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>" * 2, "an HTML page"),
    "UTF-16": ("\ufeff<html><body>login</body></html>".encode("utf-16-le"), "an HTML page"),
    "a mark and text": (b"\xef\xbb\xbfAccess denied, and nothing else", "a text (a server's answer"),
    "gzip": (gzip.compress(b"<html>" * 20), "compressed with gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(60), "compressed with zstd"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(60), "a PNG picture"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "a 7-Zip archive"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_header_is_is_refused_soon_and_in_short(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("'bad.safetensors'")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pth"])
@pytest.mark.parametrize("case", ANSWERS)
def test_a_server_s_answer_under_a_file_s_name_is_called_what_it_is(tmp_path, case, suffix):
    content, message = ANSWERS[case]
    path = tmp_path / f"answer{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_header(path)
    assert message in str(caught.value), str(caught.value)
    if "server's answer" in message:
        assert "download it again, logged in" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_gguf(1 << 60, 0, bytes(64)), "its header names 1,152,921,504,606,846,976 tensors"),
        (
            _gguf(0, 1 << 50, b"".join(_gguf_text(b"k%d" % i) + struct.pack("<IB", 0, 0) for i in range(5000))),
            "its metadata have more than 4,096 entries",
        ),
        (_gguf(0, 1, _gguf_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 40)), "its metadata cannot be understood"),
        (_gguf(0, 1, _gguf_text(b"k") + struct.pack("<IIQ", 9, 9, 1 << 40)), "its metadata cannot be understood"),
        (_gguf(0, 2, (_gguf_text(b"k" * 1000) + struct.pack("<IB", 0, 0)) * 2), "is in its metadata twice"),
    ],
    ids=["tensors", "entries", "texts", "nested arrays", "a long name"],
)
def test_a_gguf_header_is_bounded_too(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_header(path)
    assert message in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_disk_that_fails_is_named_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.ones(4)}))
    read_header(path)

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def seek(self, *_: object) -> None: ...

        def readinto(self, _: object) -> int:
            raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(FileError, match=r"^'x\.safetensors' cannot be read: Input/output error\.$"):
        dict(read_tensors(path))


def test_no_file_is_mapped_where_a_share_has_no_maps(tmp_path, monkeypatch):
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    (tmp_path / "x.safetensors").write_bytes(save(tensors))
    torch.save(tensors, tmp_path / "x.pth")

    def no_map(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 24 bytes from file </home/someone/x>: No such device (19)")

    monkeypatch.setattr("mmap.mmap", no_map)
    monkeypatch.setattr("torch.UntypedStorage.from_file", no_map)
    for name in ("x.safetensors", "x.pth"):
        assert torch.equal(dict(read_tensors(tmp_path / name))["a"], tensors["a"])


def test_what_is_read_stays_when_the_file_is_replaced(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.ones(1 << 16)}))
    read = dict(read_tensors(path))["a"]
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes(1000))
    assert bool((read == 1).all())
