"""Kinds of files that are refused, by the row of the list that they were found in: what is said is short, and names
the thing and what to do.

The rows of what is read are in test_weights_and_files.py.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import grouped
from comfyui_aitk.pipelines.errors import AITKError, DeviceMemoryError, FileError
from comfyui_aitk.pipelines.files import read_header, read_tensors
from comfyui_aitk.pipelines.layers.fill import build_empty, fill
from rendering import render

KLEIN = {"weights": "klein.safetensors", "encoder": "encoder.safetensors", "autoencoder": "ae.safetensors"}
LUMINA = {"weights": "lumina.safetensors", "encoder": "gemma.safetensors", "autoencoder": "lumina_ae.safetensors"}


def _refused(own, model: str, load: dict[str, str], message: str) -> None:
    with pytest.raises(AITKError) as caught:
        own.chosen(model, **load)
    text = str(caught.value)
    assert message in text, text
    assert len(text) < 700
    assert str(own.folder.parent) not in text


# ---- W03, W09, W11, W15, S6: files of klein, or beside them ---------------------------------------------------------


def _modelopt(own) -> None:
    file = own.file("diffusion_models", "klein.safetensors")
    grouped.write_grouped(file, file, "modelopt")


def _seeing(prefix: str, tower: str):
    """A language model that sees."""

    def change(own) -> None:
        eyes = {f"{tower}visual.blocks.0.attn.qkv.weight": torch.zeros(4, 4)}
        own.rewrite(
            "text_encoders", "encoder.safetensors",
            lambda stored: {prefix + name.removeprefix("model."): stored[name] for name in stored} | eyes,
        )  # fmt: skip

    return change


def _t5(own) -> None:
    other = {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)}
    own.rewrite("text_encoders", "encoder.safetensors", lambda _: other)


def _called(name: str):
    return lambda own: own.file("text_encoders", "encoder.safetensors").rename(own.file("text_encoders", name))


def _part_of_gguf(own) -> None:
    field = struct.pack("<Q", 11) + b"split.count" + struct.pack("<IH", 2, 3)
    own.file("text_encoders", "q.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field + bytes(64))


def _odd_blocks(own) -> None:
    file = own.file("diffusion_models", "klein.safetensors")
    grouped.write_grouped(file, file, "blocks")
    odd = {name: torch.ones(7, 7) for name in read_header(file).tensors if name.endswith("_inv")}
    own.rewrite("diffusion_models", file.name, lambda stored: stored | odd)


def _twice(own) -> None:
    shutil.copy(own.file("diffusion_models", "klein.safetensors"), own.folder / "checkpoints")


PARTS = "is part 1 of 10 of a model, and "
FILES = {
    "W03 nvfp4 of ModelOpt": (_modelopt, {}, "quantised by nvfp4 of another tool than ComfyUI's (the first is"),
    "W09 Qwen3-VL": (_seeing("model.language_model.", "model."), {}, "it is Qwen3-VL, and this model reads Qwen3"),
    "W09 Qwen3-VL, ComfyUI's names": (_seeing("model.", ""), {}, "it is Qwen3-VL, and this model reads Qwen3"),
    "W09 T5": (_t5, {}, "it is T5"),
    "W11 part 1 of 10 alone": (
        _called("model-00001-of-00010.safetensors"), {"encoder": "model-00001-of-00010.safetensors"},
        f"{PARTS}'model-00002-of-00010.safetensors' is not beside it. Put all of its parts into one folder",
    ),
    "W11 part 1 of 10, an odd name": (
        _called("model-1-of-10.safetensors"), {"encoder": "model-1-of-10.safetensors"}, f"{PARTS}such names are not",
    ),
    "W11 part 1 of 99999": (
        _called("model-00001-of-99999.safetensors"), {"encoder": "model-00001-of-99999.safetensors"},
        "is part 1 of 99999 of a model, and such names are not",
    ),
    "W11 part 0": (
        _called("model-00000-of-00002.safetensors"), {"encoder": "model-00000-of-00002.safetensors"},
        "is part 0 of 2 of a model, and such names are not",
    ),
    "W11 a part of a GGUF file": (_part_of_gguf, {"encoder": "q.gguf"}, "is one of 3 parts of a model"),
    "W15 scales of other blocks": (_odd_blocks, {}, "F32 [7, 7], do not fit together as float8_e4m3fn"),
    "S6 two files of one name": (_twice, {}, "is in diffusion_models and in checkpoints: rename one of the two"),
}  # fmt: skip


@pytest.mark.parametrize("row", FILES)
def test_a_file_of_another_kind_is_named(own, row):
    change, load, message = FILES[row]
    change(own)
    _refused(own, "flux2_klein_4b", KLEIN | load, message)


# ---- W22: what other libraries quantised ----------------------------------------------------------------------------

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FOLDERS = {
    "W22 bitsandbytes nf4": (NF4, "bitsandbytes 4-bit, nf4"),
    "W22 bitsandbytes fp4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes 4-bit, fp4"),
    "W22 bitsandbytes of an odd type": (NF4 | {"bnb_4bit_quant_type": [1]}, "bitsandbytes 4-bit"),
    "W22 bitsandbytes int8": ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "bitsandbytes 8-bit"),
    "W22 GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    "W22 AWQ": ({"quant_method": "awq", "version": "gemm"}, "awq"),
    "W22 quanto": ({"quant_method": "quanto", "weights_dtype": "int8"}, "quanto"),
    "W22 torchao": ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    "W22 nunchaku": ({"method": "svdquant", "weight": {"dtype": "int4"}}, "svdquant"),
    "W22 compressed-tensors": ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "W22 float8 of other blocks": ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "fp8"),
    "W22 mixtures of ModelOpt": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "modelopt MIXED_PRECI"),
    "W22 no method": ({"bits": 4}, "in a way that it does not name"),
    "W22 a long method": ({"quant_method": "x" * 10**6}, "x" * 40),
    "W22 a list for a method": ({"quant_method": ["gptq"] * 10**5}, "by a value of type list"),
    "W22 a method that clears the screen": ({"quant_method": "\x1b[2J"}, "\ufffd[2J"),
}


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize("row", FOLDERS)
def test_a_folder_that_a_library_quantised_is_named(own, row, part):
    said, title = FOLDERS[row]
    _say(own, part, quantization_config=said)
    _refused(own, "lumina2", {"weights": "lumina"}, f"'lumina/{part}' is quantised ({title}")


def _say(own, part: str, **said: object) -> None:
    path = own.folder / "diffusers" / "lumina" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


@pytest.mark.parametrize("said", [None, [], [1], "bitsandbytes", 4, True, {}], ids=str)
def test_w22_what_is_no_quantisation_config_changes_nothing(own, expected, said):
    for part in ("transformer", "text_encoder"):
        _say(own, part, quantization_config=said)
    found = own.chosen("lumina2", "lumina")
    assert all(torch.equal(value, expected["lumina2"][name]) for name, value in found.items())


KEYS = {
    "W22 bitsandbytes nf4": (("weight.absmax", "weight.quant_state.bitsandbytes__nf4"), "bitsandbytes, nf4"),
    "W22 bitsandbytes fp4": (("weight.absmax", "weight.quant_state.bitsandbytes__fp4"), "bitsandbytes, fp4"),
    "W22 bitsandbytes of an older library": (("weight.absmax", "weight.quant_map"), "bitsandbytes, 4-bit"),
    "W22 bitsandbytes int8": (("SCB", "weight_format"), "bitsandbytes, int8"),
    "W22 GPTQ": (("qweight", "qzeros", "scales", "g_idx"), "GPTQ"),
    "W22 AWQ": (("qweight", "qzeros", "scales"), "GPTQ or AWQ"),
    "W22 nunchaku": (("qweight", "wscales", "smooth_factor"), "SVDQuant (nunchaku)"),
    "W22 quanto": (("weight._data", "weight._scale"), "optimum-quanto"),
    "W22 compressed-tensors": (("weight_packed", "weight_scale"), "compressed-tensors"),
    "W22 torchao": (("_weight_qdata", "_weight_scale"), "torchao"),
    "W22 HQQ": (("W_q", "meta"), "HQQ"),
    "W22 ModelOpt's own checkpoint": (("weight_quantizer._scale",), "ModelOpt, its own checkpoint"),
    "W22 ModelOpt's AWQ": (("pre_quant_scale",), "ModelOpt, with scales of inputs"),
    "W22 MLX": (("scales", "biases"), "MLX"),
}


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("row", KEYS)
def test_weights_that_a_library_quantised_are_named_by_their_tensors(own, row, place):
    keys, tool = KEYS[row]
    added = {f"layers.0.attention.qkv.{key}": torch.zeros(4, dtype=torch.uint8) for key in keys}
    if place == "file":
        own.rewrite("diffusion_models", "lumina.safetensors", lambda stored: stored | added)
    else:
        # whose configuration says nothing
        name = "lumina/transformer/diffusion_pytorch_model.safetensors"
        own.rewrite("diffusers", name, lambda stored: stored | added)
    load = LUMINA if place == "file" else {"weights": "lumina"}
    _refused(own, "lumina2", load, f"holds weights quantised by {tool} (the first is 'layers.0.attention.qkv.")


# ---- F02, BIG: what is no file of tensors ---------------------------------------------------------------------------


def _header(text: bytes, data: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _of_shape(numbers: bytes) -> bytes:
    return _header(b'{"a": {"dtype": "F32", "shape": [' + numbers + b'], "data_offsets": [0, 4]}}')


CONTENTS = {
    "F02 JSON": (b'{"error": "Invalid credentials in Authorization header"}', "a JSON text (a server's answer"),
    "F02 text": (b"Access to model x is restricted. You must be authenticated.", "a text (a server's answer"),
    "F02 XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text (a server's answer"),
    "F02 HTML": (b"\n<!DOCTYPE html><html></html>", "an HTML page (a download that needed a login"),
    "F02 a byte order mark and HTML": (b"\xef\xbb\xbf<!DOCTYPE html><html></html>", "an HTML page"),
    "F02 gzip": (b"\x1f\x8b\x08" + bytes(60), "compressed with gzip"),
    "F02 a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "BIG a shape of 10^6 entries": (_of_shape(b"1" + b",1" * 10**6), "entry for 'a' cannot be understood"),
    "BIG a number of 4,300 digits": (_of_shape(b"1" + b"0" * 4299), "entry for 'a' cannot be understood"),
    "BIG a number of 5,000 digits": (_of_shape(b"1" + b"0" * 4999), "its header is not valid JSON"),
    "BIG infinity": (_of_shape(b"Infinity"), "entry for 'a' cannot be understood"),
    "BIG deep JSON": (_header(b'{"a": ' + b"[" * 10**5), "its header is not valid JSON"),
    "BIG 10^6 tensors": (
        _header(b"{" + b",".join(b'"%d": 0' % number for number in range(10**6)) + b"}"), "names 1,000,000 tensors",
    ),
    "BIG 3x10^5 keys, as of a LoRA": (
        _header(b"{" + b",".join(b'"%d.lora_A.weight": 0' % number for number in range(300_000)) + b"}"),
        "names 300,000 tensors",
    ),
    "BIG a name of a megabyte": (
        _header(b'{"%s": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' % (b"n" * 10**6)), "1,000,000 lett",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", CONTENTS)
def test_a_file_that_holds_something_else_is_called_what_it_is(own, row):
    content, message = CONTENTS[row]
    own.file("diffusion_models", "lumina.safetensors").write_bytes(content)
    _refused(own, "lumina2", LUMINA, message)


def _index(names: object) -> bytes:
    return json.dumps({"weight_map": names}).encode()


INDEXES = {
    "BIG 10^5 shards that are not there": (
        _index({f"t{number}": f"{number}.safetensors" for number in range(10**5)}),
        "transformer lacks 100000 of 100000 shards, the first is '0.safetensors'. Download it again",
    ),
    "BIG a shard of a long name": (_index({"t": "x" * 5000}), "lacks 1 of 1 shards, the first is 'xxx"),
    "AU a shard elsewhere": (
        _index({"t": "../vae/diffusion_pytorch_model.safetensors"}),
        "lacks 1 of 1 shards, the f",
    ),
    "AU a shard of an absolute name": (_index({"t": "/etc/passwd"}), "lacks 1 of 1 shards, the first is '/etc/passwd'"),
    "W20 no shards": (_index({}), "transformer has an index that names no shards"),
    "W20 no table": (_index([]), "index.json has no weight_map"),
}


@pytest.mark.parametrize("row", INDEXES)
def test_an_index_of_what_is_not_there_is_refused(own, row):
    content, message = INDEXES[row]
    folder = own.folder / "diffusers" / "lumina" / "transformer"
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_bytes(content)
    _refused(own, "lumina2", {"weights": "lumina"}, message)


@pytest.mark.parametrize(
    "load",
    [
        LUMINA | {"weights": "x" * 10**6},
        LUMINA | {"weights": "../" + "x" * 10**6},
        LUMINA | {"encoder": "/" * 10**6},
        LUMINA | {"autoencoder": "\0" * 10**6},
    ],
    ids=["missing", "outside", "absolute", "no name"],
)
def test_big_names_are_not_repeated_at_length(own, load):
    _refused(own, "lumina2", load, "is ")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_w15_whole_numbers_of_which_nothing_is_said_are_no_weights(dtype):
    tensors = {"weight": torch.ones(4, 4, dtype=dtype), "bias": torch.zeros(4)}
    with pytest.raises(FileError, match=r"^x cannot be used: its tensor 'weight' holds \w+, of which nothing is said"):
        fill(torch.nn.Linear(4, 4), tensors.items(), torch.float32, "x", lambda: None)


def test_w05_a_tokenizer_that_is_no_bytes_is_named(own):
    """Of a kind that is not bytes, and of one that torch has no numbers of."""
    for value in (torch.ones(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.int64)):
        own.rewrite("text_encoders", "gemma.safetensors", lambda stored, value=value: stored | {"spiece_model": value})
        _refused(own, "lumina2", LUMINA, "The tokenizer in 'gemma.safetensors' is damaged: it is")


SAID = {
    "BIG a billion layers": ({"num_hidden_layers": 10**9}, "its num_hidden_layers is no number of layers"),
    "BIG infinity": ({"rope_theta": float("inf")}, "its rope_theta is no size that a model has"),
    "BIG a size of 40 digits": ({"hidden_size": 10**40}, "its hidden_size is no size that a model has"),
}


@pytest.mark.parametrize("row", SAID)
def test_a_configuration_that_no_model_has_is_refused(own, row):
    said, message = SAID[row]
    _say(own, "text_encoder", **said)
    _refused(own, "lumina2", {"weights": "lumina"}, message)


# ---- M1, AU, MEM: what goes wrong while it is read ------------------------------------------------------------------


@pytest.mark.parametrize("row", ["M1 a disk that fails, safetensors", "M1 a disk that fails, GGUF"])
def test_a_disk_that_fails_is_named_with_the_file(own, monkeypatch, row):
    path = own.file("diffusion_models", "lumina.safetensors")
    if row.endswith("GGUF"):
        path = path.with_suffix(".gguf")
        entry = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 8, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry
        path.write_bytes(head + bytes(-len(head) % 32 + 32))
    read_header(path)
    opened = Path.open

    class Failing:
        """Its header is read; its tensors are not."""

        def __init__(self, file) -> None:
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str):
            return getattr(self._file, name)

        def readinto(self, _: object) -> int:
            raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", lambda self, *args: Failing(opened(self, *args)))
    with pytest.raises(FileError, match=rf"^'{path.name}' cannot be read: Input/output error\.$"):
        dict(read_tensors(path))


@pytest.mark.parametrize("row", ["AU auto_map of a tokenizer", "AU auto_map of a model", "AU _attn_implementation"])
def test_no_key_of_a_folder_runs_code(own, tmp_path, row):
    load = {"model": "lumina2", "weights": "lumina"}
    before = render(load, steps=1)
    folder, marker = own.folder / "diffusers" / "lumina", tmp_path / "marker"
    for inside in ("tokenizer", "text_encoder", "transformer"):
        (folder / inside / "own.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass Own: ...\n")
    if row.endswith("tokenizer"):
        path = folder / "tokenizer" / "tokenizer_config.json"
        code = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | code))
    elif row.endswith("model"):
        names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "own.Own")
        _say(own, "text_encoder", auto_map=names, trust_remote_code=True)
    else:
        _say(own, "text_encoder", _attn_implementation="owner/kernels:own")
    after = render(load, steps=1)
    assert torch.equal(after[0], before[0])
    assert not marker.exists()


def _raising(error: Exception):
    raise error
    yield


def _filled(error: Exception) -> object:
    return fill(torch.nn.Linear(4, 4), _raising(error), torch.float32, "x", lambda: None)


ROWS = {
    "MEM while a model is made": lambda: build_empty(lambda: next(_raising(MemoryError())), "x"),
    "MEM while a tensor is read": lambda: _filled(MemoryError()),
    "MEM while torch takes memory": lambda: _filled(RuntimeError("DefaultCPUAllocator: can't allocate memory: you")),
    "MEM of a device": lambda: _filled(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
}


@pytest.mark.parametrize("row", ROWS)
def test_out_of_memory_is_called_that(row):
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory while x was loaded\. Close other programs"):
        ROWS[row]()


@pytest.mark.parametrize("error", [RuntimeError("expected all tensors on one device"), KeyError("x")], ids=repr)
def test_mem_other_errors_are_not_called_that(error):
    with pytest.raises(type(error)):
        _filled(error)
