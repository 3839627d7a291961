"""Configurations that anybody can write: nothing of them runs code, takes memory or time, or makes a long message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.flux2 import make_checkpoint as make_flux2
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError, DeviceMemoryError
from comfyui_aitk.pipelines.layers import fill
from rendering import render

CODE = "from pathlib import Path\nPath({!r}).write_text('ran')\nclass Own: ...\n"


@pytest.fixture
def own(host, models: Path, tmp_path: Path) -> Path:
    """A models folder with a copy of the tiny checkpoint that a test may change."""
    shutil.copytree(models / "diffusers" / "tiny", tmp_path / "own" / "diffusers" / "tiny")
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    return tmp_path / "own" / "diffusers" / "tiny"


def _change(path: Path, **change: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _with_code(folder: Path, marker: Path) -> None:
    """Code in every folder, and every key that makes a library load code."""
    for part in ("transformer", "text_encoder", "vae"):
        (folder / part / "own.py").write_text(CODE.format(str(marker)))
        names = {name: "own.Own" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")}
        _change(
            folder / part / "config.json",
            auto_map=names,
            _attn_implementation="owner/kernels:own",
            attn_implementation="owner/kernels:own",
            _attn_implementation_internal="owner/kernels:own",
            experts_implementation="owner/kernels:own",
            trust_remote_code=True,
            custom_pipelines={"own": {}},
        )
    tokenizer = folder / "tokenizer"
    (tokenizer / "own.py").write_text(CODE.format(str(marker)))
    _change(tokenizer / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})


def test_nothing_in_a_folder_runs_code_and_its_picture_is_the_same(own, tmp_path):
    expected = render({"model": "lumina2", "weights": "tiny"}, steps=1)
    _with_code(own, tmp_path / "marker")
    assert torch.equal(render({"model": "lumina2", "weights": "tiny"}, steps=1)[0], expected[0])
    assert not (tmp_path / "marker").exists()


def test_nor_does_anything_in_the_folders_of_qwen3(host, tmp_path):
    folder = make_flux2(tmp_path / "own" / "diffusers" / "klein", "flux2_klein_4b")
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    load = {"model": "flux2_klein_4b", "weights": "klein"}
    expected = render(load, steps=1)
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (folder / "text_encoder" / "own.py").write_text(CODE.format(str(tmp_path / "marker")))
    _change(folder / "text_encoder" / "config.json", auto_map=names, _attn_implementation="owner/kernels:own")
    (folder / "tokenizer" / "own.py").write_text(CODE.format(str(tmp_path / "marker")))
    _change(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    assert torch.equal(render(load, steps=1)[0], expected[0])
    assert not (tmp_path / "marker").exists()


def _config(part: str, **change: object) -> Callable[[Path], None]:
    return lambda folder: _change(folder / part / "config.json", **change)


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


BAD = {
    "a billion layers": (_config("text_encoder", num_hidden_layers=10**9), "its num_hidden_layers is no number of"),
    "a billion blocks": (_config("transformer", num_layers=10**9), "its num_layers is no number of layers"),
    "a billion layers of the VAE": (_config("vae", layers_per_block=10**9), "its layers_per_block is no number"),
    "a table of 10^12 rows": (_config("transformer", axes_lens=[10**12, 1, 1]), "a number in its axes_lens is too"),
    "infinity": (_config("text_encoder", rope_theta=float("inf")), "its rope_theta is no size that a model has"),
    "a width of 10^40": (_config("text_encoder", hidden_size=10**40), "its hidden_size is no size that a model has"),
    "a class of a megabyte": (_config("transformer", _class_name="x" * 1_000_000), "holds a " + "x" * 60),
    "a model type of a megabyte": (_config("text_encoder", model_type="y" * 1_000_000), "is a '" + "y" * 200 + "'"),
    "10^6 entries": (_config("transformer", axes_dim_rope=[8] * 1_000_000), "its axes_dim_rope has 1,000,000 entries"),
    "numbers of 5,000 digits": (_text("transformer/config.json", '{"a": 1' + "0" * 5000 + "}"), "is not valid JSON"),
    "deep JSON": (_text("text_encoder/config.json", "[" * 100_000), "is not valid JSON"),
    "a tokenizer of nonsense": (
        _text("tokenizer/tokenizer.json", '{"model": "none"}'), "The tokenizer of 'tiny' cannot be used (",
    ),
    "a deep tokenizer": (_text("tokenizer/tokenizer.json", "[" * 100_000), "The tokenizer of 'tiny' cannot be used ("),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_no_model_says_is_refused_soon_and_in_short(own, case):
    change, message = BAD[case]
    change(own)
    with pytest.raises(AITKError) as caught:
        render({"model": "lumina2", "weights": "tiny"}, steps=1)
    text = str(caught.value)
    assert message in text, text
    assert len(text) < 600
    assert str(own.parents[2]) not in text


def test_a_file_whose_names_count_to_a_billion_is_refused(own):
    from comfyui_aitk.headless.tiny.containers import write_gemma2
    from safetensors.torch import load_file, save_file

    file = write_gemma2(own.parent.parent / "text_encoders" / "gemma.safetensors", own)
    tensors = load_file(file)
    for number, message in (
        ("999999", "its num_hidden_layers is no number of layers"),
        ("9" * 900, "the model has no place for 1 of its tensors"),
    ):
        save_file(tensors | {f"model.layers.{number}.mlp.gate_proj.weight": torch.zeros(2, 2)}, file)
        with pytest.raises(AITKError, match=message) as caught:
            render({"model": "lumina2", "weights": "tiny", "text_encoder": "gemma.safetensors"}, steps=1)
        assert len(str(caught.value)) < 600


def test_out_of_memory_is_called_that(own, monkeypatch):
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ):

        def factory(error: Exception = error) -> torch.nn.Module:
            raise error

        with pytest.raises(DeviceMemoryError, match="ran out of memory while 'x' was loaded"):
            fill.build_empty(factory, "'x'")

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", no_memory)
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "float32")
    with pytest.raises(DeviceMemoryError, match="ran out of memory"):
        NODE_CLASS_MAPPINGS["AITKSampler"]().sample(pipeline, "a", "", 64, 64, 1, 4.0, 1, "reference pipeline")
