"""``model: auto`` on Load AITK Model: told from the weights that are chosen, or an error that says between what."""

from __future__ import annotations

import json
import shutil
import struct
from math import prod
from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny import containers, flux2, omnigen2, z_image
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError, InputError
from comfyui_aitk.pipelines.models import catalogue
from comfyui_aitk.pipelines.models.telling import models_of

LOAD = NODE_CLASS_MAPPINGS["LoadAITKModel"]


@pytest.fixture
def files(written: Path, host) -> Path:
    """Lumina's and klein's files, which a test does not change."""
    use_host(PlainHost(written, host.input, host.output, "cpu"))
    return written


def _header(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of tensors of zeros, which take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def _flux2(path: Path, hidden: int, context: int, *, guidance: bool = False) -> None:
    """What tells FLUX.2's models: widths, as released (AI Toolkit flux2/src/model.py), and the guidance's layer."""
    shapes = {
        "img_in.weight": (hidden, 128),
        "txt_in.weight": (hidden, context),
        "single_stream_modulation.lin.weight": (3 * hidden, hidden),
        "double_blocks.0.img_attn.qkv.weight": (3 * hidden, hidden),
        "single_blocks.0.linear2.weight": (hidden, 4 * hidden),
        "single_blocks.0.norm.query_norm.scale": (128,),
    }
    _header(path, shapes | ({"guidance_in.in_layer.weight": (hidden, 256)} if guidance else {}))


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ("lumina", "lumina2"),
        ("lumina.safetensors", "lumina2"),
        ("flux2-dev.safetensors", "flux2"),
        ("4b.safetensors", "flux2_klein_4b"),
        ("9b.safetensors", "flux2_klein_9b"),
        ("omnigen2", "omnigen2"),
        ("tiny-dev", "flux2"),
        ("lumina.gguf", "lumina2"),
    ],
)
def test_the_model_is_told_from_its_weights(own, weights, model):
    folder = own.folder
    _flux2(folder / "diffusion_models" / "flux2-dev.safetensors", 6144, 15360, guidance=True)
    _flux2(folder / "diffusion_models" / "4b.safetensors", 3072, 7680)
    _flux2(folder / "diffusion_models" / "9b.safetensors", 4096, 12288)
    omnigen2.make_checkpoint(folder / "diffusers" / "omnigen2")
    flux2.make_checkpoint(folder / "diffusers" / "tiny-dev")
    containers.write_gguf(folder / "unet" / "lumina.gguf", folder / "diffusers" / "lumina", "Q8_0")
    roots = PlainHost(folder, folder, folder, "cpu").model_roots
    assert [facts.id for facts in models_of(weights, roots)] == [model]


def test_it_loads_what_the_named_model_would(own):
    files = {"text_encoder": "gemma.safetensors", "vae": "lumina_ae.safetensors"}
    for weights, more in (("lumina", {}), ("lumina.safetensors", files)):
        told, named = (LOAD().load(model, weights, "auto", **more)[0] for model in ("auto", "lumina2"))
        assert told == named
        assert told.model == "lumina2"
        arguments = (weights, *more.values())
        assert LOAD.IS_CHANGED("auto", *arguments) == LOAD.IS_CHANGED("lumina2", *arguments) != ""


def test_where_several_models_have_such_files_all_are_listed(host, tmp_path):
    tiny = z_image.make_checkpoint(tmp_path / "m" / "diffusers" / "z")
    z_image.write_single_transformer(tmp_path / "m" / "diffusion_models" / "z.safetensors", tiny)
    shutil.copytree(tiny, tmp_path / "m" / "diffusers" / "turbo" / "z")
    use_host(PlainHost(tmp_path / "m", host.input, host.output, "cpu"))
    for weights in ("z", "z.safetensors", "turbo/z"):
        with pytest.raises(AITKError) as caught:
            LOAD().load("auto", weights, "auto")
        assert str(caught.value) == (
            f"'{weights}' may hold Z-Image, Z-Image De-Turbo or Z-Image Turbo: their files look alike. Set model to "
            "zimage, zimage:deturbo or zimage:turbo."
        )


def test_a_size_that_nobody_released_is_any_of_its_kind(files):
    with pytest.raises(AITKError, match=r"may hold FLUX\.2-dev, FLUX\.2-klein 4B or FLUX\.2-klein 9B"):
        LOAD().load("auto", "klein.safetensors", "auto")


def test_without_weights_nothing_tells(files):
    with pytest.raises(InputError, match=r"weights is default\. Choose your weights, or set model to one of: lumina2"):
        LOAD().load("auto", "default", "auto")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: _header(path, {"some.weight": (2, 2)}), "holds none of the models that there are: Lumina"),
        (lambda path: path.write_bytes(b"\xff" * 100), "^'odd.safetensors'"),
        (lambda path: None, "'odd.safetensors' is not there"),
    ],
    ids=["of another model", "damaged", "gone"],
)
def test_what_is_no_model_s_is_named(own, make, message):
    make(own.folder / "diffusion_models" / "odd.safetensors")
    with pytest.raises(AITKError, match=message):
        LOAD().load("auto", "odd.safetensors", "auto")


def test_it_is_the_last_choice_and_not_the_default(host):
    choices, about = LOAD.INPUT_TYPES()["required"]["model"]
    assert choices == [*catalogue(), "auto"]
    assert about["default"] == "lumina2"


def test_weights_are_grouped_by_what_they_are_and_sorted_by_name(own):
    for name in ("b.safetensors", "A.safetensors"):
        shutil.copy(own.file("diffusion_models", "klein.safetensors"), own.file("diffusion_models", name))
        shutil.copy(own.file("diffusion_models", "klein.safetensors"), own.file("checkpoints", f"all-{name}"))
    assert LOAD.INPUT_TYPES()["required"]["weights"][0] == [
        "default", "klein", "lumina",
        "A.safetensors", "b.safetensors", "klein.safetensors", "lumina.safetensors",
        "all-A.safetensors", "all-b.safetensors",
    ]  # fmt: skip
