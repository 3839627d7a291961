"""Packed weights: dense, they are the format's own values to the bit; a layer of them is a Linear to all its users."""

from __future__ import annotations

import math

import gguf
import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.files.block_types import BLOCK_TYPES
from comfyui_aitk.pipelines.files.packed import BlockTensor, ScaledTensor, dense, stack_rows
from comfyui_aitk.pipelines.layers.fill import build_empty, fill
from comfyui_aitk.pipelines.layers.packed_linear import PackedLinear
from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGMLQuantizationType as Type
from torch import nn

OUT, IN = 24, 512
# all of them from diffusers 0.36.0 on
TYPES = [name for name in BLOCK_TYPES if Type[name] in dequantize_functions]


def packed(qtype: str, rows: int = OUT, columns: int = IN, seed: int = 0) -> BlockTensor:
    """Random blocks with scales of a weight's size: also of the types that the gguf package cannot write."""
    block = BLOCK_TYPES[qtype]
    random = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, columns // block.values * block.size), dtype=torch.uint8, generator=random)
    tensor = BlockTensor.of(raw, qtype, (rows, columns))
    tensor.scales.copy_(torch.randn(tensor.scales.shape, generator=random) * 0.01)
    return tensor


def reference(tensor: BlockTensor) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(tensor.raw.numpy(), Type[tensor.qtype])).reshape(tensor.shape)


@pytest.mark.parametrize("qtype", TYPES)
def test_dense_values_are_the_format_s_to_the_bit(qtype):
    tensor = packed(qtype)
    assert torch.equal(tensor.dequantize(), reference(tensor))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(tensor.dequantize(dtype), reference(tensor).to(dtype))


@pytest.mark.parametrize("qtype", TYPES)
def test_rows_are_the_same_rows(qtype):
    tensor = packed(qtype)
    parts = [tensor.rows(0, 16), tensor.rows(16, 20), tensor.rows(20, 24), tensor.rows(3, 3)]
    assert [part.shape for part in parts] == [(16, IN), (4, IN), (4, IN), (0, IN)]
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), reference(tensor))
    for start, stop in ((-1, 2), (3, 2), (0, OUT + 1)):
        with pytest.raises(ValueError, match="no rows"):
            tensor.rows(start, stop)


def test_more_values_than_one_step_holds():
    tensor = packed("Q4_K", 1030, 2304)
    assert torch.equal(tensor.dequantize(), reference(tensor))


@pytest.mark.parametrize("qtype", TYPES)
def test_the_scales_decide_whether_values_are_finite(qtype):
    tensor = packed(qtype)
    for column in range(tensor.scales.shape[1]):
        tensor.scales[5, column] = torch.inf
        assert not tensor.dequantize().isfinite().all()
        tensor.scales[5, column] = 0
        assert tensor.dequantize().isfinite().all()
    # whatever the other bytes are: the largest scales give no value beyond the bound that loading counts with
    tensor.scales.fill_(1)
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        blocks = tensor.raw.reshape(-1, BLOCK_TYPES[qtype].size)
        begin, end = BLOCK_TYPES[qtype].scales
        blocks[:, :begin] = byte
        blocks[:, end:] = byte
        assert tensor.dequantize().abs().max() <= 8192


def test_a_type_that_diffusers_does_not_read_is_refused():
    with pytest.raises(FileError, match="GGUF type Q8_1 are not read by the installed diffusers"):
        BlockTensor.of(torch.zeros(36, dtype=torch.uint8), "Q8_1", (32,))


def test_dense_takes_either():
    tensor = packed("Q8_0")
    assert torch.equal(dense(tensor), reference(tensor))
    assert torch.equal(dense(tensor, torch.bfloat16), reference(tensor).bfloat16())
    plain = torch.ones(2, dtype=torch.float16)
    assert dense(plain) is plain
    assert dense(plain, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_dense_layer(dtype, bias):
    tensor = packed("Q4_K")
    linear = nn.Linear(IN, OUT, bias=bias)
    linear.weight = nn.Parameter(reference(tensor))
    linear.to(dtype)
    layer = PackedLinear(tensor, linear.bias, dtype)
    x = torch.randn(2, 3, IN).to(dtype)
    with torch.inference_mode():
        assert torch.equal(layer(x), linear(x))
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert torch.equal(layer.weight.dequantize(), linear.weight)
    assert torch.equal(layer.weight.dequantize(torch.float32), reference(tensor))
    assert (layer.weight.dtype, layer.weight.shape) == (dtype, (OUT, IN))


def test_a_cast_leaves_the_bytes_and_a_move_takes_them():
    tensor = packed("Q5_K")
    before = tensor.raw.clone()
    layer = PackedLinear(tensor, torch.ones(OUT), torch.float32)
    assert not list(layer.parameters())
    for dtype in (torch.float16, torch.float64, torch.bfloat16):
        layer.to(dtype)
        assert layer.packed.dtype == torch.uint8
        assert torch.equal(layer.packed, before)
        assert layer.bias is not None
        assert (layer.bias.dtype, layer.weight.dtype) == (dtype, dtype)
    assert layer.weight.device == torch.device("cpu")
    layer.to("meta")
    assert layer.weight.device == layer.weight.dequantize().device == torch.device("meta")
    assert "Q5_K" in repr(layer)


def test_quanto_leaves_a_packed_layer_alone():
    from optimum import quanto

    model = nn.Sequential(PackedLinear(packed("Q8_0"), None, torch.float32), nn.Linear(OUT, 32))
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert type(model[0]) is PackedLinear
    assert type(model[1]) is not nn.Linear


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(32, 32, bias=False))
        self.norm = nn.LayerNorm(32)
        self.table = nn.Embedding(4, 32)


@pytest.mark.parametrize("bias_first", [True, False])
def test_a_model_is_filled_with_packed_and_plain_tensors(bias_first):
    tensors = {
        "inner.0.weight": packed("Q4_K"),
        "inner.0.bias": torch.randn(OUT),
        "inner.1.weight": torch.randn(32, 32),
        "norm.weight": BlockTensor.of(packed("Q8_0", 1, 32).raw, "Q8_0", (32,)),
        "norm.bias": torch.randn(32),
        "table.weight": packed("Q8_0", 4, 32),
        "unknown": packed("Q8_0", 4, 32),
    }
    order = sorted(tensors, reverse=not bias_first)
    model = fill(
        build_empty(Model, "test"), ((name, tensors[name]) for name in order), torch.bfloat16, "test", lambda: None,
    )  # fmt: skip
    layer = model.inner[0]
    assert type(layer) is PackedLinear
    assert type(model.inner[1]) is nn.Linear
    assert not layer.training
    assert torch.equal(layer.weight.dequantize(), reference(tensors["inner.0.weight"]).bfloat16())
    for name, value in tensors.items():
        if name not in ("inner.0.weight", "unknown"):
            assert torch.equal(model.state_dict()[name], dense(value, torch.bfloat16)), name
    assert all(not value.is_meta for value in (*model.parameters(), *model.buffers()))
    with torch.inference_mode():
        assert model.inner[0](torch.ones(1, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["inner.0.weight", "table.weight"])
def test_packed_values_that_are_not_finite_are_refused(scale, name):
    tensor = packed("Q4_K", *((OUT, IN) if name.startswith("inner") else (4, 256)))
    tensor.scales[3, 1] = scale
    with pytest.raises(FileError, match=rf"^the file is damaged: its tensor '{name}' holds NaN or Inf"):
        fill(build_empty(Model, "test"), [(name, tensor)], torch.bfloat16, "the file", lambda: None)


def test_packed_values_too_large_for_float16_are_refused_there_only():
    tensor = packed("Q8_0")
    tensor.scales[3] = 1000
    args = [("inner.0.weight", tensor)]
    fill(build_empty(Model, "test"), args, torch.bfloat16, "the file", lambda: None)
    with pytest.raises(FileError, match="float16 ends at 65504"):
        fill(build_empty(Model, "test"), args, torch.float16, "the file", lambda: None)
    # a large scale alone is no large value
    tensor.raw[:, 2:] = 0
    tensor.scales[:] = 1000
    fill(build_empty(Model, "test"), args, torch.float16, "the file", lambda: None)


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def scaled(
    dtype: torch.dtype, rows: int = OUT, scale: float = 0.0123, seed: int = 0
) -> tuple[ScaledTensor, torch.Tensor]:
    """A tensor, and its values."""
    values = torch.randn(rows, IN, generator=torch.Generator().manual_seed(seed)).mul(100).to(dtype)
    return ScaledTensor.of(values, scale), values.float() * torch.tensor(scale)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_scaled_values_are_float8_times_scale(dtype):
    tensor, values = scaled(dtype)
    assert torch.equal(tensor.dequantize(), values)
    assert torch.equal(tensor.dequantize(torch.bfloat16), values.bfloat16())
    assert torch.equal(tensor.rows(3, 9).dequantize(), values[3:9])
    assert tensor.rows(3, 9).raw.data_ptr() == tensor.raw[3:].data_ptr()
    assert tensor.largest() == values.abs().max()
    assert tensor.rows(3, 3).largest() == 0
    assert ScaledTensor.of((-values.abs()).to(dtype), -2.0).largest() == 2 * values.to(dtype).float().abs().max()
    assert tensor.to("meta").dequantize().device.type == "meta"


@pytest.mark.parametrize("dtype", FLOAT8)
def test_one_value_that_is_not_finite_shows(dtype):
    # NaN of either sign; Inf of either sign, which e4m3fn does not have
    for byte in (0x7F, 0xFF, 0x7C, 0xFC)[: 2 if dtype == torch.float8_e4m3fn else 4]:
        tensor, _ = scaled(dtype)
        tensor.raw[5, 7] = byte
        assert not math.isfinite(tensor.largest())
        stacked = stack_rows([tensor, scaled(dtype)[0]])
        assert isinstance(stacked, ScaledTensor)
        assert not math.isfinite(stacked.largest())


@pytest.mark.parametrize("dtype", FLOAT8)
def test_stacked_scaled_rows_keep_their_scales(dtype):
    pieces = [scaled(dtype, rows, scale, rows) for rows, scale in ((8, 0.3), (5, 7e-5), (11, 1.0))]
    stacked = stack_rows([tensor for tensor, _ in pieces])
    values = torch.cat([values for _, values in pieces])
    assert isinstance(stacked, ScaledTensor)
    assert torch.equal(stacked.dequantize(), values)
    assert stacked.largest() == values.abs().max()
    for start, stop in ((0, 24), (6, 15), (8, 13), (9, 10), (13, 13)):
        assert torch.equal(stacked.rows(start, stop).dequantize(), values[start:stop])
    layer = PackedLinear(stacked, torch.ones(24), torch.float32)
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight.dequantize(torch.float32), values)
    x = torch.randn(2, IN).bfloat16()
    assert torch.equal(layer(x), nn.functional.linear(x, values.bfloat16(), layer.bias))


def test_stacked_rows_of_other_kinds_are_exact():
    blocks = [packed("Q4_K", seed=1), packed("Q4_K", 8, seed=2)]
    stacked = stack_rows(blocks)
    assert isinstance(stacked, BlockTensor)
    assert torch.equal(stacked.dequantize(), torch.cat([reference(block) for block in blocks]))
    (e4m3, first), (e5m2, second) = (scaled(dtype) for dtype in FLOAT8)
    plain = torch.randn(3, IN).bfloat16()
    mixed = stack_rows([e4m3, plain, blocks[0], e5m2, plain.to(torch.float8_e5m2)])
    values = [first, plain.float(), reference(blocks[0]), second, plain.to(torch.float8_e5m2).float()]
    assert torch.equal(mixed, torch.cat(values))
    assert stack_rows([plain, plain]).dtype == torch.bfloat16
    assert stack_rows([plain.to(torch.float8_e5m2)] * 2).dtype == torch.float8_e5m2
