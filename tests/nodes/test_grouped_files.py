"""Files whose weights have scales of rows, blocks or groups: their values are those of the formats' definitions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from comfyui_aitk.headless.tiny import containers, flux2, grouped
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.block_types import GROUPED_TYPES, ROTATIONS
from comfyui_aitk.pipelines.files.packed import GroupedTensor, dense, stack_rows
from comfyui_aitk.pipelines.files.quantised import read_header, read_tensors
from comfyui_aitk.pipelines.layers.measure import expected_sizes, held_bytes
from comfyui_aitk.pipelines.layers.packed_linear import PackedLinear
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import render
from safetensors.torch import load_file

KINDS = [kind for kind in get_args(grouped.Grouped) if kind != "modelopt"]
QTYPES = {
    "nvfp4": "nvfp4", "mxfp8": "mxfp8", "int8": "int8", "int8 rows": "int8",
    "int8 convrot": "int8 convrot 16", "int4 convrot": "int4 convrot 16", "rows": "float8 E4M3 with row scales",
    "blocks": "float8 E4M3 with block scales",
}  # fmt: skip
NEAR = {
    "nvfp4": 0.13, "mxfp8": 0.04, "int8": 0.03, "int8 rows": 0.02, "int8 convrot": 0.02, "int4 convrot": 0.2,
    "rows": 0.04, "blocks": 0.04,
}  # fmt: skip
PARTS = {"text_encoder": "gemma.safetensors", "vae": "ae.safetensors"}
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _value(tensors: dict, layer: str, kind: str, row: int, column: int) -> torch.Tensor:
    """One value by the format's definition, alone."""
    weight = tensors[f"{layer}.weight"]
    if kind.endswith("convrot"):
        return _turned_value(weight, tensors[f"{layer}.weight_scale"], row, column, grouped.ROTATION)
    if kind == "nvfp4":
        byte = int(weight[row, column // 2])
        code = byte % 16 if column % 2 else byte // 16
        value = torch.tensor((-1.0 if code >= 8 else 1.0) * FLOAT4[code % 8])
        return value * (tensors[f"{layer}.weight_scale_2"] * _tile(tensors, layer, row, column // 16).float())
    value = weight[row, column].float()
    if kind == "mxfp8":
        return value * 2.0 ** (int(_tile(tensors, layer, row, column // 32)) - 127)
    if kind == "blocks":
        return value * tensors[f"{layer}.weight_scale_inv"][row // 128, column // 128]
    scale = tensors[f"{layer}.weight_scale"].float()
    return value * (scale if scale.ndim == 0 else scale[row, 0])


def _turned_value(weight: torch.Tensor, scales: torch.Tensor, row: int, column: int, rotation: int) -> torch.Tensor:
    """A Hadamard matrix of powers of the one of 4 by 4: a minus for each digit to the base 4 that makes 3 with its
    partner."""
    scale = float(scales.reshape(-1)[row])
    if scales.ndim == 1:
        halves = [(byte & 15, byte >> 4 & 15) for byte in weight[row].tolist()]
        codes = [half - 16 if half > 7 else half for pair in halves for half in pair]
    else:
        codes = weight[row].tolist()
    first, total = column // rotation * rotation, 0
    for other in range(rotation):
        sign, a, b = 1, other, column % rotation
        for _ in range(rotation.bit_length() // 2):
            sign, a, b = -sign if a % 4 + b % 4 == 3 else sign, a // 4, b // 4
        total += sign * codes[first + other]
    return torch.tensor(total * scale / rotation**0.5, dtype=torch.float64).to(torch.float32)


def _tile(tensors: dict, layer: str, row: int, column: int) -> torch.Tensor:
    scales = tensors[f"{layer}.weight_scale"]
    flat, tile = scales.reshape(-1), (row // 128) * (scales.shape[1] // 4) + column // 4
    return flat[tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4]


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory) -> Path:
    """A models folder of such files, each with its values in ``plain_NAME``. Read only."""
    folder, tiny = tmp_path_factory.mktemp("grouped"), models / "diffusers" / "tiny"
    transformers, encoders = folder / "diffusion_models", folder / "text_encoders"
    plain = containers.write_dit(transformers / "exact.safetensors", tiny)
    for kind in KINDS:
        _write_both(transformers / f"{kind}.safetensors", plain, kind)
    containers.write_gemma2(encoders / PARTS["text_encoder"], tiny)
    _write_both(encoders / "nvfp4.safetensors", encoders / PARTS["text_encoder"], "nvfp4", "metadata")
    containers.write_ae(folder / "vae" / PARTS["vae"], tiny)
    return folder


def _write_both(path: Path, plain: Path, kind, spelling="new") -> None:
    grouped.write_grouped(path, plain, kind, spelling)
    values = {name: dense(value, torch.float32) for name, value in _read(path).items() if value.dtype != torch.uint8}
    values |= {name: value for name, value in load_file(plain).items() if value.dtype == torch.uint8}
    write_tensors(path.with_name(f"plain_{path.name}"), values, {})


def _read(path: Path) -> dict:
    return dict(read_tensors(path, list(read_header(path).tensors)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_the_format_s(folder, kind):
    path = folder / "diffusion_models" / f"{kind}.safetensors"
    stored, read, exact = load_file(path), _read(path), load_file(path.with_name("exact.safetensors"))
    assert read.keys() == exact.keys()
    packed = {name: value for name, value in read.items() if not isinstance(value, torch.Tensor)}
    assert len(packed) > 5
    random = torch.Generator().manual_seed(0)
    for name, value in packed.items():
        expected_type = "scaled" if value.qtype.startswith("scaled") else QTYPES[kind]
        assert value.qtype.startswith(expected_type) or kind == "blocks"
        values = value.dequantize()
        error = (values - exact[name].float()).norm() / exact[name].float().norm()
        assert error < NEAR[kind], (name, error)
        for _ in range(20):
            row, column = (int(torch.randint(side, (1,), generator=random)) for side in value.shape)
            assert values[row, column] == _value(stored, name.removesuffix(".weight"), kind, row, column)
        assert value.dequantize(torch.bfloat16).equal(values.to(torch.bfloat16))
        # what is turned may come to the square root of its group
        room = 4 * grouped.ROTATION**0.5 if "convrot" in kind else 4
        assert float(values.abs().max()) <= value.largest() < room * float(values.abs().max())


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_values_of_every_rotation_are_the_format_s(values, rotation):
    random = torch.Generator().manual_seed(rotation)
    weight = torch.randint(-128, 128, (3, 2048 if values == "int8" else 1024), generator=random).to(torch.int8)
    scales = torch.rand(3, 1, generator=random)
    tensor = GroupedTensor.of(weight, scales, f"{values} convrot {rotation}")
    dense_values = tensor.dequantize()
    stored = scales if values == "int8" else scales[:, 0]
    for row, column in ((0, 0), (1, 2047), (2, 1023), (0, 1024), (1, 77)):
        assert dense_values[row, column] == _turned_value(weight, stored, row, column, rotation)
    assert float(dense_values.abs().max()) <= tensor.largest()


def test_values_are_those_that_comfyui_s_library_gives(tmp_path):
    """comfy-kitchen 0.2.20, its eager backend on a CPU, in float32; a turned value is there a sum that is rounded."""
    for name, recorded in json.loads((Path(__file__).parent / "comfy_kitchen.json").read_text()).items():
        tensors = {
            leaf: torch.tensor(value, dtype=getattr(torch, dtype))
            for leaf, (dtype, value) in recorded["stored"].items()
        }
        if "tiled" in recorded:
            tensors["weight_scale"] = tensors["weight_scale"].view(getattr(torch, recorded["tiled"]))
        said = torch.frombuffer(bytearray(json.dumps(recorded["said"]).encode()), dtype=torch.uint8)
        named = {f"a.{leaf}": value for leaf, value in (tensors | {"comfy_quant": said}).items()}
        path = write_tensors(tmp_path / f"{name}.safetensors", named, {})
        values = dense(_read(path)["a.weight"], torch.float32)
        torch.testing.assert_close(
            values,
            torch.tensor(recorded["values"]),
            rtol=0,
            atol=recorded["atol"],
            msg=lambda text, name=name: name + text,
        )


@pytest.mark.parametrize("qtype", GROUPED_TYPES)
def test_rows_are_the_same_rows_in_any_order(qtype):
    columns = 1024 if GROUPED_TYPES[qtype].rotation else 256 + 32
    tensor = _random(qtype, 20, columns)
    whole = tensor.dequantize()
    parts = [tensor.rows(0, 16), tensor.rows(16, 17), tensor.rows(17, 20)]
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), whole)
    assert torch.equal(dense(stack_rows(parts)), whole)
    order = torch.arange(20).flip(0)
    assert torch.equal(tensor.reordered(order).dequantize(), whole[order])
    layer = PackedLinear(tensor, None, torch.float32)
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), torch.nn.functional.linear(x, whole))
    assert layer.packed.shape[1] == GROUPED_TYPES[qtype].row_bytes(columns)


def _random(qtype: str, rows: int, columns: int) -> GroupedTensor:
    kind, random = GROUPED_TYPES[qtype], torch.Generator().manual_seed(0)
    values = torch.randint(0, 120, (rows, kind.value_bytes(columns)), generator=random, dtype=torch.uint8)
    if kind.scale == "F32":
        scales = torch.rand(rows, kind.groups(columns), generator=random)
    else:
        scales = torch.randint(100, 120, (rows, kind.groups(columns)), generator=random, dtype=torch.uint8)
    return GroupedTensor.of(values, scales, qtype, 0.01 if kind.total else None)


@pytest.mark.parametrize("qtype", GROUPED_TYPES)
def test_what_is_not_finite_is_no_small_bound(qtype):
    kind = GROUPED_TYPES[qtype]
    tensor = _random(qtype, 4, 1024)
    assert tensor.largest() < float("inf")
    begin = kind.value_bytes(1024)
    if kind.scale == "F32":
        tensor.raw[2, begin : begin + 4] = torch.tensor([torch.inf]).view(torch.uint8)
    else:
        tensor.raw[2, begin] = 255
    assert not tensor.dequantize().isfinite().all()
    assert not tensor.largest() <= torch.finfo(torch.float32).max
    if kind.values.startswith("F8"):
        tensor = _random(qtype, 4, 1024)
        tensor.raw[1, 3] = 0x7F
        assert not tensor.largest() <= torch.finfo(torch.float32).max


def test_nvfp4_gives_the_picture_of_its_values(host, folder):
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    load = {"model": "lumina2", **PARTS}
    packed = render(load | {"weights": "nvfp4.safetensors", "text_encoder": "nvfp4.safetensors"}, steps=1)
    plain = render(load | {"weights": "plain_nvfp4.safetensors", "text_encoder": "plain_nvfp4.safetensors"}, steps=1)
    assert torch.equal(packed[0], plain[0])
    quantization = json.loads(packed[6])["model"]["quantization"]
    assert quantization == {"transformer": "nvfp4", "text_encoder": "nvfp4"}


def test_a_folder_in_float8_with_scales_in_another_shard_is_read(tmp_path):
    """As Qwen3-8B-FP8: ``weight_scale_inv``, and what the configuration says of it."""
    plain = flux2.write_diffusers(tmp_path / "plain", flux2.make_checkpoint(tmp_path / "own", "flux2_klein_4b"))
    folder = tmp_path / "float8"
    shutil.copytree(plain, folder)
    encoder = folder / "text_encoder"
    file = encoder / "model.safetensors"
    tensors = load_file(grouped.write_grouped(file, plain / "text_encoder" / "model.safetensors", "blocks"))
    scales = {name for name in tensors if name.endswith("_inv")}
    assert len(scales) > 9
    write_tensors(encoder / "model-00001-of-00002.safetensors", {n: tensors[n] for n in tensors if n not in scales}, {})
    write_tensors(encoder / "model-00002-of-00002.safetensors", {n: tensors[n] for n in scales}, {})
    file.unlink()
    config = json.loads((encoder / "config.json").read_text())
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
    (encoder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    files = find_model("flux2_klein_4b").files
    source = Checkpoint.open(folder, "float8", files).source("text_encoder")
    exact = Checkpoint.open(plain, "plain", files).source("text_encoder")
    read = dict(source.read(source.tensor_infos()))
    assert {info.dtype for info in source.tensor_infos().values() if info.packed}
    for name, value in exact.read(exact.tensor_infos()):
        assert isinstance(value, torch.Tensor)
        stored = {"w.weight": tensors.get(name), "w.weight_scale_inv": tensors.get(f"{name}_scale_inv")}
        if stored["w.weight_scale_inv"] is None:
            assert torch.equal(dense(read[name]), value)
        else:
            assert dense(read[name])[3, 5] == _value(stored, "w", "blocks", 3, 5)
            assert (dense(read[name]) - value.float()).norm() / value.float().norm() < 0.04
    (encoder / "config.json").write_text(
        json.dumps(config | {"quantization_config": said | {"weight_block_size": [64, 64]}})
    )
    with pytest.raises(AITKError, match=r"'float8/text_encoder' is quantised \(fp8\), which is not read"):
        Checkpoint.open(folder, "float8", files)


MODELOPT = {
    "quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["x_embedder"], "producer": {"name": "modelopt"},
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}, "targets": ["Linear"]}},
}  # fmt: skip


def test_a_folder_of_modelopt_is_read(tmp_path):
    """Its scales lie in rows and the first of two values in the lower half of a byte; its configuration says so."""
    plain = flux2.write_diffusers(tmp_path / "plain", flux2.make_checkpoint(tmp_path / "own", "flux2_klein_4b"))
    folder = tmp_path / "nvfp4"
    shutil.copytree(plain, folder)
    encoder, files = folder / "text_encoder", find_model("flux2_klein_4b").files
    file = encoder / "model.safetensors"
    stored = load_file(grouped.write_grouped(file, plain / "text_encoder" / "model.safetensors", "modelopt"))
    config = json.loads((encoder / "config.json").read_text())

    def open_with(**said: object) -> Checkpoint:
        (encoder / "config.json").write_text(json.dumps(config | {"quantization_config": MODELOPT | said}))
        return Checkpoint.open(folder, "nvfp4", files)

    source = open_with().source("text_encoder")
    read = dict(source.read(source.tensor_infos()))
    assert sum(info.dtype == "nvfp4" for info in source.tensor_infos().values()) > 9
    for name, value in Checkpoint.open(plain, "plain", files).source("text_encoder").read(source.tensor_infos()):
        assert isinstance(value, torch.Tensor)
        total = stored.get(f"{name}_scale_2")
        if total is None:
            assert torch.equal(dense(read[name]), value)
            continue
        low, high = stored[name].long() & 15, stored[name].long() >> 4
        codes = torch.stack((low, high), dim=2).flatten(1)
        values = torch.tensor([*FLOAT4, *(-one for one in FLOAT4)])[codes].unflatten(1, (-1, 16))
        expected = (values * (stored[f"{name}_scale"].float() * total).unsqueeze(2)).flatten(1)
        assert torch.equal(dense(read[name], torch.float32), expected)
        assert torch.equal(dense(read[name], torch.bfloat16), expected.bfloat16())
        assert (expected - value.float()).norm() / value.float().norm() < NEAR["nvfp4"]
    for said in ({"quant_algo": "NVFP4_SVD"}, {"swap_weight_nibbles": True}, {"quant_algo": None}):
        with pytest.raises(AITKError, match=r"'nvfp4/text_encoder' is quantised \(modelopt.*, which is not read"):
            open_with(**said)
    (encoder / "config.json").write_text(json.dumps(config))
    source = Checkpoint.open(folder, "nvfp4", files).source("text_encoder")
    with pytest.raises(AITKError, match="weights quantised by nvfp4 of another tool than ComfyUI's"):
        source.tensor_infos()


def test_the_plan_counts_what_is_held():
    tensor = _random("nvfp4", 48, 96)
    from comfyui_aitk.pipelines.files.header import TensorInfo

    model = torch.nn.Linear(96, 48, bias=False)
    sizes = expected_sizes(model, [], {"weight": TensorInfo("nvfp4", (48, 96))}, torch.bfloat16, None)
    assert sizes.weights == held_bytes(PackedLinear(tensor, None, torch.bfloat16)) == 48 * (48 + 6 + 4)
