"""LoRA files of convolutions, as kohya's scripts, LyCORIS and PEFT save them, against changes merged by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.files.safetensors import read_header
from comfyui_aitk.pipelines.lora.file import LoraFile, read_lora
from comfyui_aitk.pipelines.lora.formats import recognise
from comfyui_aitk.pipelines.lora.kinds import Adapter
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.lora.live import LiveLayer
from comfyui_aitk.pipelines.lora.names import Names, Target
from comfyui_aitk.pipelines.weights.pieces import Piece
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]
OUT, IN, RANK = 12, 8, 2
ARITHMETICS = ("trainer", "peft", "sd-scripts")
LAYERS = {
    "3 x 3, stride 2": lambda: nn.Conv2d(IN, OUT, 3, stride=2, padding=1),
    "3 x 3, padded by reflection": lambda: nn.Conv2d(IN, OUT, 3, padding=1, padding_mode="reflect"),
    "3 x 3, dilated": lambda: nn.Conv2d(IN, OUT, 3, dilation=2, padding=(2, 0), bias=False),
    "3 x 3, same": lambda: nn.Conv2d(IN, OUT, 3, padding="same"),
    "3 x 3, in groups": lambda: nn.Conv2d(2 * IN, OUT, 3, padding=1, groups=2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


def opened(path: Path, layer: nn.Module, tensors: Tensors, pieces: tuple[Piece, ...] = (Piece("down.0.conv"),)):
    """The file's one layer for a model of this one convolution, called ``down.0.conv``."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    shapes = {f"down.0.conv.{name}": tuple(value.shape) for name, value in layer.named_parameters()}
    targets = {"down_0_conv": Target("unet", "down.0.conv", pieces)}
    contents = recognise(read_header(path), "x", "a UNet", Names(targets, frozenset(), {"unet": shapes}))
    file = LoraFile("x", FileStamp.of(path), None, read_header(path), tuple(contents.layers))
    return read_lora(file, "unet")


# ---- what a file holds, and the change by its trainer's formula -----------------------------------------------------


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / 2


def lora() -> tuple[Tensors, torch.Tensor]:
    down, up = rand(RANK, IN, 3, 3), rand(OUT, RANK, 1, 1)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    return tensors, torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down) * 3 / RANK


def tucker() -> tuple[Tensors, torch.Tensor]:
    down, mid, up = rand(RANK, IN, 1, 1), rand(RANK, RANK, 3, 3), rand(OUT, RANK, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    # the input goes through down, then mid, then up
    return tensors, torch.einsum("op,pqkl,qi->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0]) * 3 / RANK


def lokr() -> tuple[Tensors, torch.Tensor]:
    w1, w2 = rand(3, 2), rand(OUT // 3, IN // 2, 3, 3)
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1e10)}, torch.kron(w1[:, :, None, None], w2)


def lokr_in_two() -> tuple[Tensors, torch.Tensor]:
    w1, a, b = rand(3, 2), rand(OUT // 3, RANK), rand(RANK, IN // 2 * 9)
    w2 = (a @ b).reshape(OUT // 3, IN // 2, 3, 3)
    tensors = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(3.0)}
    return tensors, torch.kron(w1[:, :, None, None], w2) * 3 / RANK


def lokr_tucker() -> tuple[Tensors, torch.Tensor]:
    w1, core, a, b = rand(3, 2), rand(RANK, RANK, 3, 3), rand(RANK, OUT // 3), rand(RANK, IN // 2)
    w2 = torch.einsum("ijkl,ip,jr->prkl", core, a, b).contiguous()
    tensors = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(3.0)}
    return tensors, torch.kron(w1[:, :, None, None], w2) * 3 / RANK


def loha() -> tuple[Tensors, torch.Tensor]:
    a, b, c, d = rand(OUT, RANK), rand(RANK, IN * 9), rand(OUT, RANK), rand(RANK, IN * 9)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(3.0)}
    return tensors, ((a @ b) * (c @ d)).reshape(OUT, IN, 3, 3) * 3 / RANK


def loha_tucker() -> tuple[Tensors, torch.Tensor]:
    a, b, c, d = rand(RANK, OUT), rand(RANK, IN), rand(RANK, OUT), rand(RANK, IN)
    one, two = rand(RANK, RANK, 3, 3), rand(RANK, RANK, 3, 3)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "hada_t1": one, "hada_t2": two}
    first, second = (torch.einsum("ijkl,ip,jr->prkl", *three) for three in ((one, a, b), (two, c, d)))
    return tensors, first * second


def difference() -> tuple[Tensors, torch.Tensor]:
    change = rand(OUT, IN, 3, 3)
    return {"diff": change}, change


def full_rank() -> tuple[Tensors, torch.Tensor]:
    change = rand(OUT, IN, 3, 3)
    return {"lora_A.weight": change}, change


FORMATS: dict[str, Callable[[], tuple[Tensors, torch.Tensor]]] = {
    made.__name__: made
    for made in (lora, tucker, lokr, lokr_in_two, lokr_tucker, loha, loha_tucker, difference, full_rank)
}


def named(tensors: Tensors, name: str = "lora_unet_down_0_conv") -> Tensors:
    return {f"{name}.{end}": value for end, value in tensors.items()}


def live(layer: nn.Module, adapter: Adapter, strength: float, x: torch.Tensor, arithmetic: str, rows=None):
    hook = LiveLayer(layer)
    hook.append(0, adapter.branch(strength, x.dtype, arithmetic), rows)
    with torch.no_grad():
        output = layer(x)
        hook.remove()
        assert torch.equal(layer(x), layer(x))
    return output


def by_hand(layer: nn.Module, change: torch.Tensor) -> nn.Module:
    changed = deepcopy(layer)
    changed.weight.data += change
    return changed


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", FORMATS)
def test_merged_and_live_are_the_change_by_hand(tmp_path, name, layer):
    convolution, (tensors, change) = LAYERS[layer](), FORMATS[name]()
    ((found, adapter),) = opened(tmp_path / "x.safetensors", convolution, named(tensors)).items()
    assert found.shape == (OUT, IN, 3, 3) and not found.in_place
    merged = adapter.merge(convolution.weight.data, -0.7, Workspace("cpu"))
    assert torch.allclose(merged, convolution.weight - 0.7 * change, atol=1e-5)
    x = torch.randn(2, convolution.in_channels, 9, 11)
    with torch.no_grad():
        expected = by_hand(convolution, -0.7 * change)(x)
        for arithmetic in ARITHMETICS:
            assert torch.allclose(live(convolution, adapter, -0.7, x, arithmetic), expected, atol=1e-4), arithmetic
            # a picture without the axis of the batch
            alone = live(convolution, adapter, -0.7, x[0], arithmetic)
            assert torch.allclose(alone, expected[0], atol=1e-4)
    assert torch.equal(adapter.merge(convolution.weight.data.bfloat16(), 0.5, Workspace("cpu")).bfloat16(), (
        convolution.weight.data.bfloat16().float() + 0.5 * adapter.dense().reshape(change.shape)
    ).bfloat16())  # fmt: skip


@pytest.mark.parametrize("name", ["lora", "lokr", "loha"])
def test_a_share_of_the_rows(tmp_path, name):
    """The upper half of a convolution of twice as many."""
    convolution, (tensors, change) = nn.Conv2d(IN, 2 * OUT, 3, padding=1), FORMATS[name]()
    piece = (Piece("down.0.conv", (1, 2)),)
    ((found, adapter),) = opened(tmp_path / "x.safetensors", convolution, named(tensors), piece).items()
    x = torch.randn(2, IN, 9, 11)
    whole = torch.cat([torch.zeros_like(change), change])
    with torch.no_grad():
        expected, before = by_hand(convolution, 0.3 * whole)(x), convolution(x)
        output = live(convolution, adapter, 0.3, x, "trainer", found.into)
    assert torch.allclose(output, expected, atol=1e-4)
    assert torch.equal(output[:, :OUT], before[:, :OUT])


@pytest.mark.parametrize("shape", [(OUT,), (OUT, 1), (OUT, 1, 1, 1)])
@pytest.mark.parametrize("name", ["lora", "tucker", "lokr", "loha"])
def test_dora_scale_by_rows(tmp_path, name, shape):
    convolution, (tensors, change) = nn.Conv2d(IN, OUT, 3, stride=2, padding=1), FORMATS[name]()
    scale = torch.rand(shape) + 0.5
    tensors = named(tensors | {"dora_scale": scale})
    ((_, adapter),) = opened(tmp_path / "x.safetensors", convolution, tensors).items()
    x = torch.randn(2, IN, 9, 11)
    with torch.no_grad():
        whole = convolution.weight + change
        norm = whole.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        expected = by_hand(convolution, whole * scale.view(-1, 1, 1, 1) / norm - convolution.weight)(x)
        assert torch.allclose(live(convolution, adapter, 1.0, x, "trainer"), expected, atol=1e-4)


def test_dora_scale_by_columns_is_refused(tmp_path):
    tensors = named(lora()[0] | {"dora_scale": torch.ones(1, IN, 1, 1)})
    with pytest.raises(LoraError, match="does not fit"):
        opened(tmp_path / "x.safetensors", nn.Conv2d(IN, OUT, 3), tensors)


def test_kernels_of_one_value_fit_linear_layers_and_the_other_way_round(tmp_path):
    """kohya's scripts train the same projections as either."""
    down, up = rand(RANK, IN), rand(OUT, RANK)
    flat = {"lora_down.weight": down, "lora_up.weight": up}
    kernels = {end: value[:, :, None, None] for end, value in flat.items()}
    x = torch.randn(2, IN)
    linear, convolution = nn.Linear(IN, OUT), nn.Conv2d(IN, OUT, 1)
    for tensors in (flat, kernels):
        ((_, adapter),) = opened(tmp_path / "x.safetensors", linear, named(tensors)).items()
        with torch.no_grad():
            assert torch.allclose(live(linear, adapter, 1.0, x, "trainer"), linear(x) + x @ down.T @ up.T, atol=1e-5)
        assert torch.allclose(
            adapter.merge(linear.weight.data, 1.0, Workspace("cpu")), linear.weight + up @ down, atol=1e-5
        )
        ((_, adapter),) = opened(tmp_path / "x.safetensors", convolution, named(tensors)).items()
        merged = adapter.merge(convolution.weight.data, 1.0, Workspace("cpu"))
        assert torch.allclose(merged, convolution.weight + (up @ down)[:, :, None, None], atol=1e-5)
    with pytest.raises(LoraError, match=r"is \[12, 8\] in the model, and the file's tensors make \[12, 8, 3, 3\]"):
        opened(tmp_path / "x.safetensors", linear, named(lora()[0]))


CONFIGS = {
    "LoRA": lambda: LoraConfig(r=4, lora_alpha=4, target_modules=["conv"]),
    "DoRA": lambda: LoraConfig(r=4, lora_alpha=4, target_modules=["conv"], use_dora=True),
    "LoKr": lambda: LoKrConfig(r=2, alpha=2, target_modules=["conv"]),
    "LoKr, Tucker": lambda: LoKrConfig(r=2, alpha=2, target_modules=["conv"], use_effective_conv2d=True),
    "LoHa": lambda: LoHaConfig(r=4, alpha=4, target_modules=["conv"]),
    "LoHa, Tucker": lambda: LoHaConfig(r=4, alpha=4, target_modules=["conv"], use_effective_conv2d=True),
}


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(IN, OUT, 3, stride=2, padding=1)})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down[0]["conv"](x)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saves_is_what_peft_computes(tmp_path, name):
    unet = Unet()
    convolution = deepcopy(unet.down[0]["conv"])
    model = get_peft_model(unet, CONFIGS[name]())
    for key, value in model.named_parameters():
        if any(part in key for part in ("lora_A", "lora_B", "lokr_", "hada_")):
            value.data = torch.randn_like(value) / 4
        elif "magnitude" in key:
            value.data = value.data * 1.3
    x = torch.randn(2, IN, 9, 11)
    tensors = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    ((_, adapter),) = opened(tmp_path / "x.safetensors", convolution, tensors).items()
    with torch.no_grad():
        assert torch.allclose(live(convolution, adapter, 1.0, x, "peft"), model(x), atol=1e-4)
