"""ComfyUI's int8 files through the nodes: one scale for a weight, one for each row, and turned (``convrot``).

Krea 2 and Z-Image are published so. What is right are the values of the format's definition, computed here in float64
and stored as a plain file: that file's picture is the int8 file's, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import grouped, krea2, qwen_image, z_image
from comfyui_aitk.headless.tiny.files import Tensors, write_tensors
from comfyui_aitk.headless.tiny.qwen_image_vae import write_wan_vae
from comfyui_aitk.nodes.host import PlainHost, use_host
from rendering import put_into_cache, render
from safetensors.torch import load_file

KINDS = ("int8", "int8 rows", "int8 convrot", "int4 convrot")
NEAR = {"int8": 0.1, "int8 rows": 0.1, "int8 convrot": 0.1, "int4 convrot": 0.7}


@dataclass(frozen=True)
class Family:
    """A model: how its tiny files are written, whose tokenizer they need, and how many columns are turned together."""

    write: Callable[[Path, Path], None]
    make: Callable[[Path], Path]
    repository: str
    folder: str
    rotation: int


def _write_krea2(folder: Path, checkpoint: Path) -> None:
    krea2.write_single_transformer(folder / "diffusion_models" / "plain.safetensors", checkpoint)
    krea2.write_single_text_encoder(folder / "text_encoders" / "encoder.safetensors", checkpoint)
    write_wan_vae(folder / "vae" / "vae.safetensors", checkpoint)


def _write_others(write: Callable[[Path, Path], tuple[Path, Path, Path]]) -> Callable[[Path, Path], None]:
    def written(folder: Path, checkpoint: Path) -> None:
        names = ("diffusion_models/plain", "text_encoders/encoder", "vae/vae")
        for path, name in zip(write(folder, checkpoint), names, strict=True):
            target = folder / f"{name}.safetensors"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)

    return written


FAMILIES = {
    "krea2": Family(_write_krea2, krea2.make_checkpoint, "Qwen/Qwen3-VL-4B-Instruct", "", 256),
    "qwen_image": Family(
        _write_others(qwen_image.write_single_files), qwen_image.make_checkpoint, "Qwen/Qwen-Image", "tokenizer/", 256
    ),
    # queries, keys and values lie in one matrix there; none is as wide as ComfyUI's rotation
    "zimage": Family(
        _write_others(z_image.write_single_files), z_image.make_checkpoint, "Tongyi-MAI/Z-Image-Turbo", "tokenizer/", 64
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory) -> tuple[str, Path]:
    """A model's name, and a models folder of its files; each int8 one's values are ``values_NAME``. Read only."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    family.write(folder, family.make(folder / "diffusers" / "tiny"))
    transformers, encoders = folder / "diffusion_models", folder / "text_encoders"
    for kind in KINDS:
        file = grouped.write_grouped(
            transformers / f"{kind}.safetensors", transformers / "plain.safetensors", kind, rotation=family.rotation
        )
        write_tensors(file.with_name(f"values_{file.name}"), _values(load_file(file)), {})
    layers = grouped.write_grouped(
        encoders / "layers.safetensors", encoders / "encoder.safetensors", "int8 convrot", rotation=16
    )
    # ComfyUI holds tables so, too
    tensors = load_file(layers)
    (table,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    scale = tensors[table].float().abs().amax(1, keepdim=True) / 127
    said = torch.frombuffer(bytearray(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    layer = table.removesuffix(".weight")
    tensors |= {
        table: (tensors[table].float() / scale).round().to(torch.int8),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": said,
    }
    write_tensors(encoders / "turned.safetensors", tensors, {})
    write_tensors(encoders / "values_turned.safetensors", _values(tensors), {})
    return request.param, folder


@pytest.fixture
def run(written, host, hub_cache, kept_engine):
    model, folder = written
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    own = folder / "diffusers" / "tiny" / "tokenizer"
    family = FAMILIES[model]
    put_into_cache(hub_cache, family.repository, {f"{family.folder}{file.name}": file for file in own.iterdir()})
    parts = {"text_encoder": "encoder.safetensors", "vae": "vae.safetensors"}

    def rendered(weights: str, **change: object) -> tuple:
        return render({"model": model, "weights": weights, **parts, **change}, width=64, height=64)

    return rendered


def test_the_picture_is_that_of_the_format_s_values(run, written):
    plain = run("plain.safetensors")[4]["samples"]
    for kind in KINDS:
        found, expected = (run(f"{name}{kind}.safetensors") for name in ("", "values_"))
        assert torch.equal(found[4]["samples"], expected[4]["samples"]), kind
        assert 0 < (found[4]["samples"] - plain).norm() / plain.norm() < NEAR[kind], kind
        stored = json.loads(found[6])["model"]["quantization"]["transformer"]
        if kind.endswith("convrot"):
            assert f"{kind} {FAMILIES[written[0]].rotation}" in stored
        else:
            assert stored == "int8"
    rounded = [run(f"{name}int8 convrot.safetensors", dtype="bfloat16")[4]["samples"] for name in ("", "values_")]
    assert torch.equal(*rounded)


def test_a_text_encoder_in_int8_is_its_values(run):
    plain, found, expected = (
        run("plain.safetensors", text_encoder=f"{name}.safetensors") for name in ("encoder", "turned", "values_turned")
    )
    assert torch.equal(found[4]["samples"], expected[4]["samples"])
    assert not torch.equal(found[4]["samples"], plain[4]["samples"])
    assert "int8 convrot 16" in json.loads(found[6])["model"]["quantization"]["text_encoder"]


def _values(tensors: Tensors) -> Tensors:
    """What a file holds, by the definition of its formats: float32 in the place of each quantised weight."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(".comfy_quant")]:
        layer = name.removesuffix(".comfy_quant")
        said = json.loads(bytes(tensors[name].numpy()))
        codes, scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"].double()
        if said["format"] == "convrot_w4a4":
            halves = torch.stack((codes & 15, codes >> 4 & 15), dim=2).flatten(1)
            codes = torch.where(halves > 7, halves - 16, halves)
        value = codes.double()
        if said["format"] == "convrot_w4a4" or said.get("convrot"):
            size = said.get("convrot_groupsize", 256)
            value = (value.reshape(-1, size) @ _signs(size)).reshape(value.shape) / size**0.5
        found[f"{layer}.weight"] = (value * (scale if scale.ndim == 0 else scale.reshape(-1, 1))).float()
        del found[name], found[f"{layer}.weight_scale"]
    return found


def _signs(size: int) -> torch.Tensor:
    """The rotation without its root, by digits to the base 4: a minus for each pair of digits that makes 3."""
    row, column = torch.arange(size)[:, None], torch.arange(size)[None]
    signs = torch.ones(size, size, dtype=torch.float64)
    while size > 1:
        signs = torch.where(row % 4 + column % 4 == 3, -signs, signs)
        row, column, size = row // 4, column // 4, size // 4
    return signs
