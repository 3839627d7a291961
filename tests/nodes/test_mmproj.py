"""GGUF text encoders that see pictures, through the nodes: llama.cpp's language model and its ``mmproj`` beside it.

What is right is the picture of the same values in a safetensors file, which test_qwen_image_edit.py and
test_krea2_edit.py compare with AI Toolkit's own folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from comfyui_aitk.headless.tiny import krea2, qwen_image, qwen_image_edit
from comfyui_aitk.headless.tiny.containers import write_gguf_text_encoder
from comfyui_aitk.headless.tiny.files import Tensors, read_part, write_tensors
from comfyui_aitk.headless.tiny.mmproj import write_mmproj
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.header import TensorInfo
from comfyui_aitk.pipelines.files.packed import dense
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.parts.language_model.mmproj import QWEN2_5, QWEN3
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from rendering import noise_image, put_into_cache, render

# a control image has a megapixel, whatever the size: what is encoded and loaded stays
pytestmark = pytest.mark.usefixtures("kept_engine")

FOX = {"width": 64, "height": 64, "guidance_scale": 1.0, "control": [noise_image(64, 64, 1)]}
QUANTS = ("F32", "BF16", "F16", "Q8_0")


@dataclass(frozen=True)
class Seeing:
    """A model that sees its control images by such an encoder.

    Attributes:
        name: of the encoder's released files.
        make: writes its checkpoint.
        whole: the encoder's tensors in the names of ComfyUI's file.
        language: writes the language model as GGUF.
        repository: of the tokenizer, and where it lies in that.
    """

    name: str
    make: Callable[[Path], Path]
    whole: Callable[[Path], Tensors]
    language: Callable[[Path, Path], Any]
    repository: tuple[str, str, str]


SEEING = {
    "qwen_image_edit_plus": Seeing(
        "Qwen2.5-VL-7B-Instruct",
        qwen_image_edit.make_checkpoint,
        qwen_image.released_text_encoder,
        lambda path, checkpoint: qwen_image.write_gguf_text_encoder(path, checkpoint, "BF16"),
        ("Qwen/Qwen-Image-Edit-2509", "processor", "processor/"),
    ),
    "krea2:o_edit": Seeing(
        "Qwen3-VL-4B-Instruct",
        krea2.make_checkpoint,
        lambda checkpoint: krea2.comfy_text_encoder(read_part(checkpoint, "text_encoder")),
        lambda path, checkpoint: write_gguf_text_encoder(path, krea2.language_model(checkpoint), "BF16", "qwen3vl"),
        ("Qwen/Qwen3-VL-4B-Instruct", "tokenizer", ""),
    ),
}


def _tower(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name.startswith("visual.")}


@pytest.fixture(scope="module", params=SEEING)
def written(request, tmp_path_factory) -> tuple[str, Path]:
    """A model, and a models folder with a pair of files for each quantisation of the tower. Read only."""
    own, folder = SEEING[request.param], tmp_path_factory.mktemp("mmproj")
    checkpoint = own.make(folder / "diffusers" / "tiny")
    whole, encoders = own.whole(checkpoint), folder / "text_encoders"
    for quant in QUANTS:
        own.language(encoders / quant / f"{own.name}-Q4_K_M.gguf", checkpoint)
        mmproj = write_mmproj(encoders / quant / f"{own.name}-mmproj-{quant}.gguf", _tower(whole), quant)
        write_tensors(encoders / f"{quant}.safetensors", whole | _values(mmproj, _tower(whole)), {})
    return request.param, folder


@pytest.fixture
def run(written, host, hub_cache):
    model, folder = written
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    repository, where, inside = SEEING[model].repository
    own = folder / "diffusers" / "tiny" / where
    put_into_cache(hub_cache, repository, {f"{inside}{file.name}": file for file in own.iterdir()})
    return lambda encoder, **change: render(
        {"model": model, "weights": "tiny", "text_encoder": encoder, **change}, **FOX
    )


def test_two_gguf_files_give_the_picture_of_one_safetensors_file(run, written):
    name = SEEING[written[0]].name
    exact = run("default")[4]["samples"]
    for quant in QUANTS:
        found = run(f"{quant}/{name}-Q4_K_M.gguf")
        expected = run(f"{quant}.safetensors")[4]["samples"]
        assert torch.equal(found[4]["samples"], expected), quant
        # what is stored is bfloat16, of which float16 loses the smallest values
        error = (expected - exact).norm() / exact.norm()
        assert error == 0 if quant in ("F32", "BF16") else 0 < error < 0.05, (quant, error)
        files = json.dumps(json.loads(found[6])["model"])
        assert f"{name}-Q4_K_M.gguf" in files and f"{name}-mmproj-{quant}.gguf" in files


def test_every_tensor_is_where_the_safetensors_file_has_it(written):
    """By their values: a picture's frames are alike, and kernels in each other's place would change nothing."""
    model, folder = written
    files, encoders = find_model(model).files, folder / "text_encoders"
    paths = (encoders / "F32" / f"{SEEING[model].name}-Q4_K_M.gguf", encoders / "F32.safetensors")
    two, one = (open_single_file(path, path.name, files)["text_encoder"] for path in paths)
    assert two.config() == one.config()
    found, expected = ({name: dense(value) for name, value in own.read(own.tensor_infos())} for own in (two, one))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name].float(), expected[name].float())] == []


def test_a_tower_of_another_size_is_named():
    infos = {f"v.deepstack.{block}.norm.weight": TensorInfo("F32", (32,)) for block in (8, 16, 24)}
    with pytest.raises(ValueError, match=r"behind the blocks \[8, 16, 24\], and this model reads \[5, 11, 17\]"):
        QWEN3.places(infos)
    with pytest.raises(ValueError, match=r"behind the blocks \[8, 16, 24\], and this model reads \[\]"):
        QWEN2_5.places(infos)


def test_without_it_the_error_says_what_to_put_where(run, written, tmp_path):
    model, folder = written
    name, encoders = SEEING[model].name, folder / "text_encoders"
    language = encoders / "BF16" / f"{name}-Q4_K_M.gguf"
    alone = encoders / "alone"
    alone.mkdir(exist_ok=True)
    (alone / language.name).hardlink_to(language)
    title = name.partition("-VL")[0] + "-VL"
    with pytest.raises(AITKError) as caught:
        run(f"alone/{language.name}")
    assert (
        f"it is {title} without the vision tower, with which it sees pictures. Put that of {title} into the same "
        f"folder, called like '{name}-mmproj-F16.gguf'; or choose {title} in one safetensors file" in str(caught.value)
    )
    with pytest.raises(
        AITKError, match=rf"vision tower alone \(mmproj\). Choose the GGUF file of {title} that it lies"
    ):
        run(f"BF16/{name}-mmproj-BF16.gguf")


def test_another_s_tower_is_named(run, written):
    model, folder = written
    name, encoders = SEEING[model].name, folder / "text_encoders"
    other = encoders / "other"
    other.mkdir()
    language = encoders / "BF16" / f"{name}-Q4_K_M.gguf"
    (other / language.name).hardlink_to(language)
    tower = {"visual.blocks.0.norm1.weight": torch.ones(32)}
    write_mmproj(other / f"{name}-mmproj-F16.gguf", tower, "F16", "qwen2vl_merger")
    with pytest.raises(AITKError, match=r"beside .* is no vision tower of .*: its projector is 'qwen2vl_merger', and"):
        run(f"other/{language.name}")


def test_a_model_that_sees_nothing_does_not_ask_for_one(host, written, hub_cache):
    """Two lie beside the file: which belongs to it is not asked."""
    model, folder = written
    name, encoders = SEEING[model].name, folder / "text_encoders"
    both = encoders / "both"
    both.mkdir()
    for quant in ("BF16", "F16"):
        (both / f"{name}-mmproj-{quant}.gguf").hardlink_to(encoders / quant / f"{name}-mmproj-{quant}.gguf")
    language = encoders / "BF16" / f"{name}-Q4_K_M.gguf"
    (both / language.name).hardlink_to(language)
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    plain = model.partition("_edit")[0].partition(":")[0]
    repository = {"qwen_image": "Qwen/Qwen-Image", "krea2": "Qwen/Qwen3-VL-4B-Instruct"}[plain]
    inside = "tokenizer/" if plain == "qwen_image" else ""
    own = folder / "diffusers" / "tiny" / "tokenizer"
    put_into_cache(hub_cache, repository, {f"{inside}{file.name}": file for file in own.iterdir()})
    load = {"model": plain, "weights": "tiny"}
    found, expected = (
        render(load | more, width=64, height=64)[4]["samples"]
        for more in ({"text_encoder": f"both/{language.name}"}, {})
    )
    assert torch.equal(found, expected)
    with pytest.raises(
        AITKError, match="needs the vision tower that belongs to it, and 2 files beside it could be that"
    ):
        render({**load, "model": model, "text_encoder": f"both/{language.name}"}, **FOX)


def _values(path: Path, tower: Tensors) -> Tensors:
    """What a written tower holds, by the gguf package, in the places of the tower's own tensors: found by their values,
    of which those in the file are roundings."""
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    dense = {
        name: torch.from_numpy(gguf.quants.dequantize(own.data, own.tensor_type).copy()).reshape(
            tuple(int(side) for side in reversed(own.shape))
        )
        for name, own in read.items()
    }
    found: Tensors = {}
    for name, value in tower.items():
        pieces = [value[:, :, frame] for frame in (0, 1)] if value.ndim == 5 else [value]
        if ".qkv." in name and not any("attn_qkv" in own for own in dense):
            pieces = list(value.chunk(3))
        rounded = [_nearest(piece.float(), dense) for piece in pieces]
        found[name] = torch.stack(rounded, dim=2) if value.ndim == 5 else torch.cat(rounded)
    return found


def _nearest(value: torch.Tensor, among: Tensors) -> torch.Tensor:
    same = [own for own in among.values() if own.shape == value.shape]
    nearest = min(same, key=lambda own: float((own - value).norm()))
    assert (nearest - value).norm() <= 0.02 * value.norm()
    return nearest
