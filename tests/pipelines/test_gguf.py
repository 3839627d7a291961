"""GGUF files: whatever happens to one, the error is ours and names it; what is read is what was written."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files import SUFFIXES
from comfyui_aitk.pipelines.files import read_header as read_any_header
from comfyui_aitk.pipelines.files import read_tensors as read_any_tensors
from comfyui_aitk.pipelines.files.block_types import BLOCK_TYPES
from comfyui_aitk.pipelines.files.gguf import read_header, read_tensors
from comfyui_aitk.pipelines.files.packed import BlockTensor
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
VALUES = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
PLAIN, TEXT, ARRAY = 4, 8, 9  # kinds of metadata values: uint32, string, array


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str = "a", dims: tuple[int, ...] = (8,), type_: int = Type.F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, offset)


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def content(*entries: bytes, fields: tuple[bytes, ...] = (), version: int = 3, data: int = 32, counts=None) -> bytes:
    tensors, values = counts or (len(entries), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(fields) + b"".join(entries)
    return head + bytes(-len(head) % 32 + data)


def write(path: Path, packed: tuple[str, ...] = (), plain: tuple[type, ...] = (np.float32,)) -> Path:
    """A file by the gguf package: ``VALUES`` in every given type, under the type's name."""
    writer = gguf.GGUFWriter(path, "lumina2")
    writer.add_array("tokenizer.ggml.tokens", ["one", "two"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_string("general.note", "ünï")
    for dtype in plain:
        writer.add_tensor(np.dtype(dtype).name, VALUES.astype(dtype))
    for name in packed:
        writer.add_tensor(name, gguf.quants.quantize(VALUES, Type[name]), raw_dtype=Type[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_tells_names_shapes_and_metadata(tmp_path):
    header = read_header(write(tmp_path / "x.gguf", ("Q4_0", "BF16"), (np.float32, np.float16)))
    assert {name: (info.dtype, info.shape, info.packed) for name, info in header.tensors.items()} == {
        "float32": ("F32", (8, 64), False),
        "float16": ("F16", (8, 64), False),
        "Q4_0": ("Q4_0", (8, 64), True),
        "BF16": ("BF16", (8, 64), False),
    }
    assert header.metadata == {"general.architecture": "lumina2", "general.note": "ünï"}


def test_plain_tensors_are_exact(tmp_path):
    path = write(tmp_path / "x.gguf", ("BF16",), (np.float32, np.float16))
    values = torch.from_numpy(VALUES)
    read = dict(read_tensors(path))
    for name, dtype in {"float32": torch.float32, "float16": torch.float16, "BF16": torch.bfloat16}.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], values.to(dtype))


def test_packed_tensors_keep_their_bytes(tmp_path):
    types = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    read = dict(read_tensors(write(tmp_path / "x.gguf", types)))
    for name in types:
        assert isinstance(read[name], BlockTensor)
        assert (read[name].qtype, read[name].shape) == (name, (8, 64))
        stored = gguf.quants.quantize(VALUES, Type[name])
        assert np.array_equal(read[name].raw.numpy(), stored)
        assert np.array_equal(read[name].dequantize().numpy(), gguf.quants.dequantize(stored, Type[name]))


def test_the_chosen_tensors_come_in_the_chosen_order(tmp_path):
    path = write(tmp_path / "x.gguf", ("Q8_0", "Q4_0"))
    assert [name for name, _ in read_tensors(path, ["Q4_0", "float32"])] == ["Q4_0", "float32"]
    assert [name for name, _ in read_tensors(path)] == ["float32", "Q8_0", "Q4_0"]
    with pytest.raises(FileError, match="was changed while it was read"):
        next(read_tensors(path, ["gone"]))


def test_tensors_are_no_maps_of_the_file(tmp_path):
    path = write(tmp_path / "x.gguf", ("Q8_0",))
    read = dict(read_tensors(path))
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(read["float32"], torch.from_numpy(VALUES))
    assert read["Q8_0"].raw.any()


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "x.gguf"
    # more than is read ahead
    path.write_bytes(content(entry(), entry("b", (1 << 18,), offset=32), data=32 + (4 << 18)))
    tensors = read_tensors(path)
    next(tensors)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64)
    with pytest.raises(FileError, match=r"^'x\.gguf' was changed while it was read"):
        next(tensors)


def test_the_block_table_is_the_gguf_package_s_and_diffusers_reads_no_more():
    from diffusers.quantizers.gguf.utils import dequantize_functions

    for name, block in BLOCK_TYPES.items():
        assert block.number == Type[name]
        assert (block.values, block.size) == gguf.GGML_QUANT_SIZES[Type[name]]
    assert dequantize_functions.keys() <= {Type[name] for name in (*BLOCK_TYPES, "BF16")}


HUGE = (1 << 64) - 1
DAMAGED = {
    "empty": (b"", "it does not begin with GGUF"),
    "a web page": (b"<!DOCTYPE html><html>", "it is an HTML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
    "a pickle": (b"\x80\x02}q\x00.", "it is a Python pickle"),
    "an archive": (b"PK\x03\x04" + bytes(60), "it is a PyTorch pickle or zip archive"),
    "safetensors": ((2).to_bytes(8, "little") + b"{}", "it is a safetensors file"),
    "noise": (b"ggml" + bytes(60), "it does not begin with GGUF"),
    "only the magic": (b"GGUF", "is cut off: its header alone needs 8 bytes, the file has 4"),
    "version 1": (content(version=1), "has version 1; only GGUF versions 2 and 3"),
    "big-endian": (content(version=3 << 24), "is written for big-endian machines"),
    "too many tensors": (content(entry(), counts=(HUGE, 0)), "is damaged|is cut off"),
    "too many values": (content(entry(), counts=(1, HUGE)), "is damaged|is cut off"),
    "zeros": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, HUGE) + bytes(100_000), "is in its metadata twice"),
    "a huge name": (content(struct.pack("<Q", HUGE)), "a text in its header has"),
    "a name that is no text": (content(struct.pack("<Q", 2) + b"\xff\xfe"), "no UTF-8"),
    "a text beyond the end": (
        content(fields=(field("k", TEXT, struct.pack("<Q", 1 << 20)),)), "is cut off: its header alone needs",
    ),
    "a huge array": (
        content(fields=(field("k", ARRAY, struct.pack("<IQ", PLAIN, HUGE)),)), "is cut off: its header alone needs",
    ),
    "a huge array of texts": (content(fields=(field("k", ARRAY, struct.pack("<IQ", TEXT, HUGE)),)), "metadata"),
    "arrays in arrays": (
        content(fields=(field("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9),)), "its metadata cannot be understood",
    ),
    "an unknown kind of value": (content(fields=(field("k", 99, bytes(8)),)), "its metadata cannot be understood"),
    "a key twice": (content(fields=(field("k", PLAIN, bytes(4)),) * 2), "'k' is in its metadata twice"),
    "an odd alignment": (
        content(fields=(field("general.alignment", PLAIN, struct.pack("<I", 24)),)), "no power of two",
    ),
    "no alignment": (content(fields=(field("general.alignment", PLAIN, bytes(4)),)), "no power of two"),
    "a part of a model": (
        content(fields=(field("split.count", PLAIN, struct.pack("<I", 3)),)), "is one of 3 parts of a model",
    ),
    "a tensor twice": (content(entry(), entry(offset=32), data=64), "'a' is in its header twice"),
    "too many dimensions": (content(entry(dims=(1,) * 9)), "has 9 dimensions"),
    "no values": (content(entry(dims=(0, 4))), "has no values"),
    "a huge shape": (content(entry(dims=(HUGE, HUGE))), "is cut off: its tensors need"),
    "a huge offset": (content(entry(offset=HUGE - 31)), "is cut off: its tensors need"),
    "an odd offset": (content(entry(offset=8), data=64), "does not begin after"),
    "tensors over each other": (content(entry(), entry("b")), "does not begin after"),
    "broken blocks": (content(entry(dims=(33, 2), type_=Type.Q8_0), data=128), r"shape \[2, 33\], are no whole Q8_0"),
    "a packed number": (content(entry(dims=(), type_=Type.Q8_0), data=128), "are no whole Q8_0"),
    "a type that is not read": (
        content(entry(dims=(256,), type_=Type.IQ2_XXS), data=256), "'a' is of type IQ2_XXS. .*F32, .*, Q4_K, .*IQ4_XS",
    ),
    "a type that does not exist": (content(entry(type_=4711)), "number 4,711, which GGUF does not define"),
    "too short": (content(entry(), data=31), "is cut off: its tensors need 96 bytes, the file has 95"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, damage, words):
    path = tmp_path / "odd.gguf"
    path.write_bytes(damage)
    with pytest.raises(FileError, match=rf"(?s)^'odd\.gguf' .*({words})"):
        read_header(path)
    with pytest.raises(FileError, match=r"^'odd\.gguf'"):
        list(read_tensors(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"^'no\.gguf' cannot be read"):
        read_header(tmp_path / "no.gguf")


def test_odd_but_whole_files_are_read(tmp_path):
    path = tmp_path / "odd.gguf"
    alignment = field("general.alignment", PLAIN, struct.pack("<I", 8))
    data = struct.pack("<2f", 1, 2)
    head = content(entry(dims=()), entry("b", (1, 1, 1, 1, 1), offset=8), fields=(alignment,), version=2, data=0)
    start = head.rindex(entry("b", (1, 1, 1, 1, 1), offset=8)) + len(entry("b", (1, 1, 1, 1, 1)))
    path.write_bytes(head[:start] + bytes(-start % 8) + data[:4] + bytes(4) + data[4:])
    read = dict(read_tensors(path))
    assert torch.equal(read["a"], torch.tensor(1.0))
    assert torch.equal(read["b"], torch.tensor(2.0).reshape(1, 1, 1, 1, 1))
    path.write_bytes(content(data=0))
    assert read_header(path).tensors == {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    # the last tensor ends on a multiple of the alignment: no padding follows that could be lost without harm
    return write(tmp_path_factory.mktemp("whole") / "x.gguf", ("Q8_0", "BF16"), (np.float32, np.float16)).read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_cut_is_noticed(tmp_path, whole, data):
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FileError, match=r"^'cut\.gguf'"):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_our_error_or_a_readable_file(tmp_path, whole, data):
    changes = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4)
    changed = bytearray(whole)
    for place, value in data.draw(changes):
        changed[place] = value
    path = tmp_path / "noise.gguf"
    path.write_bytes(changed)
    try:
        list(read_tensors(path))
    except FileError as error:
        assert str(error).startswith("'noise.gguf'")


def test_the_ending_chooses_the_container(tmp_path):
    path = write(tmp_path / "x.GGUF", ("Q8_0",))
    assert read_any_header(path).tensors["Q8_0"].packed
    assert [name for name, _ in read_any_tensors(path, ["Q8_0"])] == ["Q8_0"]
    assert set(SUFFIXES) == {".safetensors", ".sft", ".gguf", ".pth", ".pt", ".ckpt", ".bin"}
    for call in (read_any_header, lambda path: next(read_any_tensors(path))):
        with pytest.raises(FileError, match=r"^'x\.zip' is no file of tensors by its name; .*\.safetensors, .*\.bin"):
            call(tmp_path / "x.zip")


def test_containers_import_no_torch_before_tensors_are_read(tmp_path):
    path = write(tmp_path / "x.gguf", ("Q8_0",))
    code = (
        "import sys, types, pathlib\n"
        "pack = sys.modules['pack'] = types.ModuleType('pack')\n"
        f"pack.__path__ = [{str(ROOT)!r}]\n"
        "from pack.pipelines.files import read_header\n"
        f"assert len(read_header(pathlib.Path({str(path)!r})).tensors) == 2\n"
        "print(sorted({'torch', 'gguf', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
