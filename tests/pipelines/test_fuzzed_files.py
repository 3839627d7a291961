"""Files of every container and format with bytes and fields changed: our own error, or tensors no larger than the file.

What is drawn is the same every time; a file has a name of its own each time, since headers are kept by file.
"""

from __future__ import annotations

import copy
import io
import json
import struct
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_aitk.headless.tiny.containers import write_scaled_float8
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.headless.tiny.grouped import write_grouped
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files.block_types import BLOCK_TYPES
from comfyui_aitk.pipelines.files.packed import PackedTensor
from comfyui_aitk.pipelines.files.quantised import read_header, read_tensors
from comfyui_aitk.pipelines.files.quantised.formats import MODELOPT
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fuzzed = settings(
    max_examples=120,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = count()
# of a file's size: a value of half a byte takes four in float32, and each row may get a scale of four bytes
MOST_TIMES = 64


def consume(path: Path, unsaid: str = "") -> int:
    """Reads all of a file; returns how many tensors were read."""
    limit = MOST_TIMES * path.stat().st_size + 4096
    own = torch.empty

    def checked(*size: Any, **options: Any) -> torch.Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        assert torch.Size(shape).numel() <= limit
        return own(*size, **options)

    read = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", checked)
        try:
            header = read_header(path, unsaid)
            for name, value in read_tensors(path, list(header.tensors), unsaid):
                read += 1
                assert header.tensors[name].packed == isinstance(value, PackedTensor)
                dense = value.dequantize() if isinstance(value, PackedTensor) else value
                assert dense.numel() * dense.element_size() <= limit
                if isinstance(value, PackedTensor):
                    largest = value.largest()
                    finite = dense[dense.isfinite()]
                    assert not largest < (float(finite.abs().max()) if finite.numel() else 0.0)
        except FileError as error:
            text = str(error)
            assert path.name in text
            assert str(path.parent) not in text
            assert len(text) < 1500
    return read


def fresh(folder: Path, content: bytes, suffix: str) -> Path:
    path = folder / f"fuzzed{next(NUMBERS)}{suffix}"
    path.write_bytes(content)
    return path


EDGES = [0, 1, 2, 0x7F, 0xFF, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


@st.composite
def changed_bytes(draw: Callable[..., Any], content: bytes, upto: int) -> bytes:
    """Bytes set, put in, taken out, cut off, or made a large number; most of them among the first ``upto``."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(changed), upto) - 1)))
        kind = draw(st.sampled_from(["set", "set", "set", "insert", "delete", "number", "cut"]))
        if kind == "set":
            changed[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del changed[place : place + draw(st.integers(1, 9))]
        elif kind == "number":
            changed[place : place + 8] = struct.pack("<Q", draw(st.sampled_from(EDGES)))
        else:
            del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


ODD = [
    None, True, -1, 0, 1, 3, 10**30, 1 << 62, 0.5, float("inf"), float("nan"), "", "F32", "I8", "F8_E8M0", "\ud800",
    "x" * 5000, [], {}, [1, 2, 3], [[[[]]]], {"format": "nvfp4"}, [0, 0],
]  # fmt: skip


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    """Every way into a tree of JSON."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*above, key)
        yield from places(value, (*above, key))


@st.composite
def changed_json(draw: Callable[..., Any], tree: Any) -> Any:
    """A tree with values replaced, taken out, or put elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        owner = tree
        for key in way:
            owner = owner[key]
        kind = draw(st.sampled_from(["replace", "replace", "delete", "rename"]))
        if kind == "replace":
            owner[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "delete" or not isinstance(owner, dict):
            del owner[last]
        else:
            owner[draw(st.sampled_from(["a.weight", "a.weight_scale", "a.comfy_quant", "a", "format"]))] = owner.pop(
                last
            )
    return tree


# ---- safetensors, with and without scales ---------------------------------------------------------------------------

PLAIN = {f"layers.{i}.{name}.weight": torch.randn(4, 32) for i in range(2) for name in ("one", "two")}
KINDS = ["nvfp4", "mxfp8", "int8", "int8 rows", "int8 convrot", "int4 convrot", "rows", "blocks", "modelopt"]
SAFETENSORS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "plain": (lambda path, plain: write_tensors(path, PLAIN | {"b": torch.zeros(0, 3)}, {"a": "b"}), ""),
    **{
        f"scaled float8, {spelling}": (lambda path, plain, own=spelling: write_scaled_float8(path, plain, own), "")
        for spelling in ("old", "new", "metadata")
    },
    **{
        f"{kind}, {spelling}": (
            lambda path, plain, own=(kind, spelling): write_grouped(path, plain, *own),
            MODELOPT if kind == "modelopt" else "",
        )
        for kind in KINDS
        for spelling in ("new", "metadata")
    },
}


@pytest.fixture(scope="module")
def safetensors_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    plain = write_tensors(folder / "plain.safetensors", PLAIN, {})
    return {case: write(folder / "x.safetensors", plain).read_bytes() for case, (write, _) in SAFETENSORS.items()}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_whole_safetensors_file_is_read(tmp_path, safetensors_files, case):
    assert consume(fresh(tmp_path, safetensors_files[case], ".safetensors"), SAFETENSORS[case][1]) >= 4


@pytest.mark.parametrize("case", SAFETENSORS)
@fuzzed
@given(data=st.data())
def test_changed_bytes_of_safetensors(tmp_path, safetensors_files, case, data):
    whole = safetensors_files[case]
    upto = 8 + int.from_bytes(whole[:8], "little") if data.draw(st.booleans()) else len(whole)
    consume(fresh(tmp_path, data.draw(changed_bytes(whole, upto)), ".safetensors"), SAFETENSORS[case][1])


@pytest.mark.parametrize("case", SAFETENSORS)
@fuzzed
@given(data=st.data())
def test_changed_fields_of_safetensors(tmp_path, safetensors_files, case, data):
    """A header that is JSON all the same, and the bytes that it spoke of; or what is said of the layers."""
    whole, unsaid = safetensors_files[case], SAFETENSORS[case][1]
    end = 8 + int.from_bytes(whole[:8], "little")
    tree, body = json.loads(whole[8:end]), whole[end:]
    said = tree.get("__metadata__", {}).get("_quantization_metadata")
    if said and data.draw(st.booleans()):
        tree["__metadata__"]["_quantization_metadata"] = json.dumps(data.draw(changed_json(json.loads(said))))
    else:
        tree = data.draw(changed_json(tree))
    header = json.dumps(tree).encode()
    consume(fresh(tmp_path, struct.pack("<Q", len(header)) + header + body, ".safetensors"), unsaid)


@fuzzed
@given(said=changed_json({"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 4}}))
def test_changed_words_of_a_layer(tmp_path, said):
    text = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    tensors = {
        "a.weight": torch.ones(4, 32, dtype=torch.int8),
        "a.weight_scale": torch.ones(4, 1),
        "a.comfy_quant": text,
    }
    consume(write_tensors(tmp_path / f"fuzzed{next(NUMBERS)}.safetensors", tensors, {}))


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def gguf(name: str) -> bytes:
    """A file of one packed and one plain tensor, with metadata of every sort."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    block = BLOCK_TYPES[name]
    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("lumina2"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    rows = 3
    entries = [
        text("a.weight") + struct.pack("<IQQIQ", 2, block.values, rows, block.number, 0),
        text("b") + struct.pack("<IQIQ", 1, 8, GGMLQuantizationType.F32, -(-rows * block.size // 32) * 32),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(fields)) + b"".join(fields) + b"".join(entries)
    blocks = torch.randint(0, 256, (rows * block.size,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    body = blocks.numpy().tobytes()
    return head + bytes(-len(head) % 32) + body + bytes(-len(body) % 32) + bytes(32)


@pytest.mark.parametrize("name", BLOCK_TYPES)
@fuzzed
@given(data=st.data())
def test_changed_bytes_of_gguf(tmp_path, name, data):
    whole = gguf(name)
    assert consume(fresh(tmp_path, whole, ".gguf")) == 2
    upto = 330 if data.draw(st.booleans()) else len(whole)
    consume(fresh(tmp_path, data.draw(changed_bytes(whole, upto)), ".gguf"))


# ---- PyTorch's pickles ----------------------------------------------------------------------------------------------


def pickled(content: object, *, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


STATE = {"a.weight": torch.randn(4, 8), "b": torch.ones(3).half(), "c": torch.arange(5)}
PICKLES = {
    "an archive": pickled(STATE),
    "before 1.6": pickled(STATE, old=True),
    "wrapped": pickled({"state_dict": STATE, "epoch": 3}),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", PICKLES)
@fuzzed
@given(data=st.data())
def test_changed_bytes_of_a_pickle(tmp_path, case, data):
    whole = PICKLES[case]
    assert consume(fresh(tmp_path, whole, ".pth")) == 3
    consume(fresh(tmp_path, data.draw(changed_bytes(whole, len(whole))), ".pth"))


HUGE = {
    "a shape that repeats one value": torch.zeros(1).expand(1 << 40),
    "a shape that repeats one row": torch.zeros(1, 4).expand(1 << 30, 4),
    "a tensor without values": torch.empty(1 << 40, device="meta"),
}


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_cannot_claim_more_than_it_stores(tmp_path, case, old):
    path = tmp_path / "claims.pth"
    path.write_bytes(pickled({"a": HUGE[case]}, old=old))
    with pytest.raises(FileError, match=r"^'claims\.pth' (is damaged|cannot be used): its tensor 'a' is") as caught:
        read_header(path)
    assert len(str(caught.value)) < 300


def test_an_archive_cannot_unpack_to_much_more_than_its_size(tmp_path):
    import zipfile

    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(1 << 20)}))) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(FileError, match=r"^'bomb\.pth' is refused: its archive unpacks to 4,\d{3},\d{3} bytes\."):
        read_header(path)
