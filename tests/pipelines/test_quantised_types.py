"""AI Toolkit's types of quantised weights: how large they are, where they may be, and what LoRAs do to them: nothing.

That their values are AI Toolkit's own is asked in ``tests/live``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_aitk.headless.tiny import z_image as tiny
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import FileError, InputError, LoraError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.layers import torchao, uintx
from comfyui_aitk.pipelines.layers.holding import dense_weight, holding_of
from comfyui_aitk.pipelines.layers.measure import held_bytes
from comfyui_aitk.pipelines.machine.plan import DeviceMemory
from comfyui_aitk.pipelines.machine.transfer import mapped, pieces
from comfyui_aitk.pipelines.machine.unit import stores
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import QUANTIZATION_CHOICES, Quantization, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import AskedMachine, loaded, wanted
from torch import nn

NO_TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
TESTED_ELSEWHERE = ("model default", "none", "qfloat8", "qint8", "fp8_e4m3fn")
QTYPES = [
    pytest.param(name, marks=[NO_TORCHAO] * (name in torchao.QTYPES))
    for name in QUANTIZATION_CHOICES
    if name not in TESTED_ELSEWHERE
]
MODEL = find_model("zimage")
WEIGHT = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("z_image") / "tiny")


@pytest.fixture(scope="module")
def lora(folder) -> LoraSpec:
    path = tiny.make_lora(folder.parent / "lora.safetensors", folder)
    return LoraSpec(path.name, FileStamp.of(path), 0.8)


@pytest.fixture
def handle(folder) -> PipelineHandle:
    return PipelineHandle("zimage", Checkpoint.open(folder, "tiny", MODEL.files))


def _run(engine: Engine, handle: PipelineHandle) -> SampleResult:
    return sample(engine, handle, REQUEST, SilentObserver())


def _digest(module: nn.Module) -> str:
    """Of every byte that the module holds."""
    found = hashlib.sha256()
    for value in (*module.parameters(), *module.buffers()):
        for piece in pieces(value.detach()):
            found.update(piece.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _held(quantization: Quantization, dtype: torch.dtype) -> Any:
    """A layer that holds WEIGHT in a type."""
    model = nn.Sequential(nn.Linear(256, 32, bias=False, dtype=dtype)).requires_grad_(False)
    form = holding_of(quantization)
    assert form is not None
    form.hold(model, "0", WEIGHT.to(dtype), "here")
    return model[0]


@pytest.mark.parametrize("quantization", QTYPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sizes_before_loading_are_those_of_the_loaded_parts(engine, handle, quantization, dtype):
    asked = wanted(engine, replace(handle, dtype=dtype, options=RuntimeOptions(quantization, quantization)))
    plain = wanted(engine, replace(handle, dtype=dtype, options=RuntimeOptions("none", "none"))).plan
    for part in ("transformer", "text_encoder"):
        with engine.on_device(asked, part, SilentObserver()) as module:
            assert asked.plan.part(part).weights == held_bytes(module) < plain.part(part).weights


@pytest.mark.parametrize("quantization", QTYPES)
def test_a_lora_is_live_and_leaves_every_byte_as_it_was(engine, handle, lora, quantization):
    base = replace(handle, options=RuntimeOptions(quantization))
    expected = _run(engine, base).images
    before = _digest(loaded(engine, "transformer"))
    pictures = [expected]
    for strength in (0.8, -0.5):
        result = _run(engine, base.with_lora(replace(lora, strength=strength)))
        assert result.report["model"]["quantization"]["transformer"] == quantization
        assert [row["application"] for row in result.report["loras"]] == ["live"]
        assert not any(torch.equal(result.images, other) for other in pictures)
        pictures.append(result.images)
    assert torch.equal(_run(engine, base).images, expected)
    assert _digest(loaded(engine, "transformer")) == before
    assert engine.counters.parts_loaded == 3
    with pytest.raises(LoraError, match=rf"cannot be merged: the transformer is quantised \({quantization}\)"):
        wanted(engine, base.with_lora(replace(lora, application="merged")))


@pytest.mark.parametrize("quantization", QTYPES)
def test_the_picture_is_the_same_wherever_the_weights_are(engine, handle, lora, quantization):
    options = RuntimeOptions(quantization, quantization)
    # in 16 bits it is refused where weights move
    dtype = "float32" if quantization == "qint4" else "bfloat16"
    base = replace(handle, dtype=dtype, options=options).with_lora(lora)
    expected = _run(engine, base).images
    # "cpu:0" takes every path of a device that is not the CPU
    elsewhere = Engine(AskedMachine("cpu:0"))
    for placement in ("resident", "streamed", "sequential", "resident"):
        placed = replace(base, options=replace(options, placement=placement))
        assert torch.equal(_run(elsewhere, placed).images, expected), placement
    assert elsewhere.counters.parts_loaded == 3


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_group_of_uintx_is_what_its_rule_says(bits, dtype):
    top, generator = 2**bits - 1, torch.Generator().manual_seed(bits)
    weight = torch.randn(6, 3 * 64, generator=generator).to(dtype)
    weight[0] = 0
    weight[1] = weight[1].abs() + 1
    weight[2] = -weight[2].abs() - 1
    weight[3] *= 1e-6
    expected = torch.empty_like(weight)
    for row, columns in ((row, slice(first, first + 64)) for row in range(6) for first in (0, 64, 128)):
        group, nothing = weight[row, columns], torch.zeros((), dtype=dtype)
        low, high = torch.minimum(group.min(), nothing), torch.maximum(group.max(), nothing)
        scale = torch.maximum((high - low) / top, torch.tensor(2.0**-23, dtype=dtype))
        zero = min(max(-int((low / scale).round()), 0), top)
        steps = [(value * (1 / scale)).round().clamp(-999, 999) for value in group]
        # 0 times the infinite inverse of a tiny scale in float16
        codes = [0 if step.isnan() else min(max(int(step) + zero, 0), top) for step in steps]
        expected[row, columns] = torch.stack([torch.tensor(code - zero, dtype=dtype) * scale for code in codes])
    held = uintx.quantize(weight, bits)
    assert torch.equal(held.dequantize(), expected)
    assert torch.equal(held.rows(2, 5).dequantize(), expected[2:5])
    assert held.packed.shape == (6, 3 * 64 * bits // 8)


def test_rows_of_no_whole_groups_stay_dense_in_uintx():
    form = uintx.UIntX(4)
    assert form.takes(nn.Linear(128, 3), "")
    assert not form.takes(nn.Linear(96, 64), ""), "AI Toolkit prints that, and leaves the layer as it is"
    assert not form.takes(nn.Conv2d(64, 64, 1), "")


@pytest.mark.parametrize("quantization", QTYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_live_lora_of_the_weight_sees_the_values_that_the_layer_has(quantization, dtype):
    """DoRA reads the whole weight, a LoRA of shared rows some of it."""
    layer = _held(quantization, dtype)
    found = dense_weight(layer)
    assert found.dtype == torch.float32
    assert torch.equal(dense_weight(layer, (3, 9)), found[3:9])
    assert not torch.equal(found, WEIGHT.to(dtype).float())
    # as coarse as the type: with two bits a value may be half of a third of its group's range away
    assert (found - WEIGHT).abs().max() < 1.5
    with torch.no_grad():
        identity = layer(torch.eye(256, dtype=dtype)).T.float()
    assert torch.allclose(identity, found, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("quantization", QTYPES)
def test_a_weight_that_is_copied_piece_by_piece_is_the_same(quantization):
    """As it is pinned for a GPU."""
    layer = _held(quantization, torch.bfloat16)
    expected, before = dense_weight(layer), _digest(layer)
    for store in stores(layer):
        store.update({name: mapped(value, torch.clone) for name, value in store.items() if value is not None})
    assert _digest(layer) == before
    assert torch.equal(dense_weight(layer), expected)


@pytest.mark.parametrize("quantization", torchao.QTYPES)
def test_torchao_that_is_missing_or_broken_is_named(engine, handle, quantization, monkeypatch):
    asked = replace(handle, options=RuntimeOptions(quantization))
    monkeypatch.setattr(torchao, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=rf"{quantization} is a type of torchao, which is not installed. Install it in"
    ):
        wanted(engine, asked)

    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(torchao, "find_spec", lambda name: name)
    monkeypatch.setattr(torchao, "import_module", fail)
    with pytest.raises(
        InputError, match=r"cannot be imported with torch .* \(ImportError\). Install a torchao that fits"
    ):
        wanted(engine, asked)


def test_quantos_qint4_is_refused_where_it_would_be_packed_anew(handle):
    engine = Engine(AskedMachine("cuda:0", DeviceMemory(1 << 40, 1 << 40)))
    asked = replace(handle, options=RuntimeOptions("qint4"))
    with pytest.raises(InputError, match=r"qint4 in bfloat16 runs on the CPU alone: on cuda:0 .* Choose uint4"):
        wanted(engine, asked)
    assert wanted(engine, replace(asked, dtype="float32")).keys["transformer"].quantization == "qint4"


def test_rows_that_quantos_kernel_cannot_take_are_named():
    weight = torch.ones(40, 256, dtype=torch.bfloat16)
    form = holding_of("qint4")
    assert form is not None
    with pytest.raises(FileError, match=r"here: '0.weight' has 40 rows, and in bfloat16 .* takes multiples of 16"):
        form.hold(nn.Sequential(nn.Linear(256, 40, dtype=torch.bfloat16)), "0", weight, "here")
    form.hold(nn.Sequential(nn.Linear(256, 40)), "0", weight.float(), "here")
