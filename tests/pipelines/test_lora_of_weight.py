"""OFT, BOFT, GLoRA, IA3 and AdaLoRA: changes that are made of the weight, against formulas written out and PEFT's code.

The formulas gave what LyCORIS 3.4 and 1.8.3, kohya's networks/oft.py and oft_flux.py, OneTrainer's oft_utils.py and
ComfyUI 0.28.2 (at strength 1) compute, to 1e-6, when they were run beside these kinds on random tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import FileStamp, Header, TensorInfo
from comfyui_aitk.pipelines.files.safetensors import read_header
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import LoraFile, read_lora
from comfyui_aitk.pipelines.lora.formats import recognise
from comfyui_aitk.pipelines.lora.info import summary
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.lora.live import LiveLayer
from comfyui_aitk.pipelines.lora.names import Names, Target
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.weights.pieces import Piece
from peft import AdaLoraConfig, IA3Config, OFTConfig, get_peft_model, get_peft_model_state_dict
from rendering import wanted
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]
OUT, IN, RANK = 24, 16, 4


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(11)


class Written(NamedTuple):
    """What a file holds of a layer, and what the weight becomes: (weight, strength) -> weight."""

    tensors: Tensors
    changed: Callable[[torch.Tensor, float], torch.Tensor]


def cayley(blocks: torch.Tensor, longest: float = 0) -> list[torch.Tensor]:
    """(I + Q) (I - Q)^-1 of each, Q no longer than ``longest`` where that is given."""
    skew = blocks - blocks.mT
    if longest and skew.norm() > longest:
        skew = skew * longest / skew.norm()
    still = torch.eye(blocks.shape[-1])
    return [(still + one) @ torch.linalg.inv(still - one) for one in skew.flatten(0, -3)]


def kernel_last(weight: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A change of a matrix [out, in], made at each place of a kernel."""
    places = weight.flatten(2).unbind(2) if weight.ndim > 2 else [weight]
    return torch.stack([change(one) for one in places], -1).reshape(weight.shape)


def turning(weight: torch.Tensor, turn: torch.Tensor, strength: float) -> torch.Tensor:
    still = torch.eye(len(turn))
    return kernel_last(weight, lambda one: (strength * turn.T + (1 - strength) * still) @ one)


def oft(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    blocks = rand(rows // 4, 4, 4)
    turn = torch.block_diag(*cayley(blocks))
    return Written({"oft_blocks": blocks}, lambda weight, strength: turning(weight, turn, strength))


def oft_shortened(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    """kohya's and LyCORIS' alpha bounds the length of all of Q, and LyCORIS' rescale multiplies the rows."""
    blocks, rescale = rand(rows // 4, 4, 4), 1 + rand(rows, 1, *(1 for _ in kernel))
    turn = torch.block_diag(*cayley(blocks, 0.05 * rows))
    assert (blocks - blocks.mT).norm() > 0.05 * rows
    return Written(
        {"oft_blocks": blocks, "rescale": rescale, "alpha": torch.tensor(0.05)},
        lambda weight, strength: turning(weight, turn, strength) * (1 + strength * (rescale - 1)),
    )


def oft_in_shares(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    """kohya's of FLUX' fused layers, where alpha bounds each share."""
    shares = [rand(2, rows // 8, rows // 8), rand(2, rows // 8, rows // 8), rand(2, rows // 4, rows // 4)]
    tensors = {f"oft_blocks.{number}": blocks for number, blocks in enumerate(shares)}
    turns = [turn for blocks in shares for turn in cayley(blocks, 0.1 * 2 * blocks.shape[1])]
    turn = torch.block_diag(*turns)
    return Written(tensors | {"alpha": torch.tensor(0.1)}, lambda weight, strength: turning(weight, turn, strength))


def butterfly(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    """Each factor as one big matrix: the order of the rows is one, too."""
    factors, height = 3, 6 if rows % 6 == 0 else 4
    blocks = rand(factors, rows // height, height, height)
    turns = []
    for number, one in enumerate(blocks):
        step = 2**number * height // 2
        order = torch.arange(rows).reshape(-1, 2, step).transpose(1, 2).flatten()
        turns.append((torch.eye(rows)[order], torch.block_diag(*cayley(one[None]))))

    def changed(weight: torch.Tensor, strength: float) -> torch.Tensor:
        still = torch.eye(rows)
        for order, turn in turns:
            whole = order.T @ (strength * turn + (1 - strength) * still) @ order
            weight = kernel_last(weight, lambda one, whole=whole: whole @ one)
        return weight

    return Written({"oft_blocks": blocks}, changed)


def glora(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    places = tuple(1 for _ in kernel)
    a1, a2, b1 = rand(IN, RANK, *places), rand(RANK, IN, *places), rand(rows, RANK, *places)
    b2 = rand(RANK, IN, *kernel)
    tensors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": torch.tensor(3.0)}

    def changed(weight: torch.Tensor, strength: float) -> torch.Tensor:
        of_weight = kernel_last(weight, lambda one: one @ a1.flatten(1) @ a2.flatten(1))
        return weight + strength * 3 / RANK * (of_weight + (b1.flatten(1) @ b2.flatten(1)).reshape(weight.shape))

    return Written(tensors, changed)


def glora_of_1_8(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    """The halves the other way round; a convolution has no kernel then."""
    new = glora((), rows)
    swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    places = tuple(1 for _ in kernel)
    return Written(
        {
            key if key == "alpha" else f"{swapped[key[:2]]}.weight": value if key == "alpha" else value[(..., *places)]
            for key, value in new.tensors.items()
        },
        new.changed,
    )


def ia3(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    numbers = rand(rows)
    shape = (1, rows, *(1 for _ in kernel)) if kernel else (rows,)
    return Written(
        {"weight": numbers.reshape(shape), "on_input": torch.tensor(0)},
        lambda weight, strength: kernel_last(weight, lambda one: one * (1 + strength * numbers)[:, None]),
    )


def ia3_on_input(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    numbers = rand(IN)
    shape = (1, IN, *(1 for _ in kernel)) if kernel else (IN,)
    return Written(
        {"weight": numbers.reshape(shape), "on_input": torch.tensor(1)},
        lambda weight, strength: kernel_last(weight, lambda one: one * (1 + strength * numbers)),
    )


def oft_v2(kernel: tuple[int, ...] = (), rows: int = OUT, count: int = IN // 4, scaled: bool = False) -> Written:
    triangles = rand(count, 6)
    turns = []
    for one in triangles / (2 * 3**0.5 if scaled else 1):
        a, b, c, d, e, f = one.tolist()
        skew = torch.tensor([[0, a, b, c], [-a, 0, d, e], [-b, -d, 0, f], [-c, -e, -f, 0]])
        power = torch.linalg.matrix_power
        turns.append(torch.eye(4) + 2 * skew + 2 * power(skew, 2) + 2 * power(skew, 3) + power(skew, 4))
    turn = torch.block_diag(*turns * (IN // 4 // count))
    tensors = {"oft_R.weight": triangles} | ({"oft_R.scaled_oft": torch.tensor(True)} if scaled else {})
    return Written(tensors, lambda weight, strength: weight + strength * (weight @ turn.T - weight))


def oft_v2_shared() -> Written:
    return oft_v2(count=1)


def oft_v2_scaled() -> Written:
    return oft_v2(scaled=True)


def adalora(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    down, up, numbers = rand(RANK, IN), rand(rows, RANK), rand(RANK, 1)
    change = up @ numbers.flatten().diag() @ down * 6 / (RANK + 1e-5)
    tensors = {"lora_A": down, "lora_B": up, "lora_E": numbers, "alpha": torch.tensor(6.0)}
    return Written(tensors, lambda weight, strength: weight + strength * change)


def whole(kernel: tuple[int, ...] = (), rows: int = OUT) -> Written:
    """At any strength."""
    value = rand(rows, IN, *kernel)
    return Written({"set_weight": value}, lambda weight, strength: value)


KINDS = {
    "OFT": (oft, oft_shortened, oft_in_shares, butterfly),
    "OFTv2": (oft_v2, oft_v2_shared, oft_v2_scaled),
    "GLoRA": (glora, glora_of_1_8),
    "IA3": (ia3, ia3_on_input),
    "AdaLoRA": (adalora,),
    "whole weights": (whole,),
}
WRITERS = [(title, writer) for title, writers in KINDS.items() for writer in writers]
IDS = [writer.__name__ for _, writer in WRITERS]
ON_CONVOLUTIONS = (oft, oft_shortened, butterfly, glora, ia3, ia3_on_input, whole)
STRENGTHS = (1.0, 0.4, -0.7)


def opened(path, layers: nn.Module | dict[str, nn.Module], tensors: Tensors) -> LoraFile:
    """A file's one layer, for a model of these, whose rows lie below each other in it."""
    layers = layers if isinstance(layers, dict) else {"conv": layers}
    save_file({f"lora_unet_down_0_conv.{end}": value.contiguous() for end, value in tensors.items()}, path)
    shapes = {f"{name}.{n}": tuple(v.shape) for name, layer in layers.items() for n, v in layer.named_parameters()}
    target = Target("unet", "down.0.conv", tuple(map(Piece, layers)))
    header = read_header(path)
    contents = recognise(header, "x", "a UNet", Names({"down_0_conv": target}, frozenset(), {"unet": shapes}))
    return LoraFile("x", FileStamp.of(path), None, header, tuple(contents.layers))


def live(layer: nn.Module, adapter, strength: float, x: torch.Tensor, rows=None) -> torch.Tensor:
    hook = LiveLayer(layer)
    hook.append(0, adapter.branch(strength, x.dtype, "trainer"), rows)
    with torch.no_grad():
        output = layer(x)
    hook.remove()
    return output


def with_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    own = layer.weight.data
    layer.weight.data = weight
    with torch.no_grad():
        output = layer(x)
    layer.weight.data = own
    return output


@pytest.mark.parametrize(("title", "writer"), WRITERS, ids=IDS)
def test_merged_and_live_are_the_formula(tmp_path, title, writer):
    """In bfloat16 with one rounding; the bias stays."""
    layer, written, x = nn.Linear(IN, OUT), writer(), torch.randn(2, 5, IN)
    file = opened(tmp_path / "x.safetensors", layer, written.tensors)
    assert file.title == title and file.mergeable
    ((_, adapter),) = read_lora(file, "unet").items()
    assert not adapter.is_zero
    weight = layer.weight.data.clone()
    for strength in STRENGTHS:
        expected = written.changed(weight, strength)
        assert (expected - weight).abs().max() > 0.02
        assert torch.allclose(adapter.merge(weight, strength, Workspace("cpu")), expected, atol=2e-6)
        rounded = written.changed(weight.bfloat16().float(), strength).bfloat16()
        assert torch.allclose(
            adapter.merge(weight.bfloat16(), strength, Workspace("cpu")), rounded.float(), atol=0, rtol=2**-7
        )
        assert torch.allclose(live(layer, adapter, strength, x), with_weight(layer, expected, x), atol=1e-5)
    assert torch.equal(layer.weight.data, weight)


@pytest.mark.parametrize("writer", ON_CONVOLUTIONS, ids=lambda writer: writer.__name__)
def test_on_convolutions(tmp_path, writer):
    layer, written, x = nn.Conv2d(IN, OUT, 3, stride=2), writer((3, 3)), torch.randn(2, IN, 9, 11)
    ((_, adapter),) = read_lora(opened(tmp_path / "x.safetensors", layer, written.tensors), "unet").items()
    for strength in STRENGTHS:
        expected = written.changed(layer.weight.data, strength)
        assert torch.allclose(adapter.merge(layer.weight.data, strength, Workspace("cpu")), expected, atol=2e-6)
        assert torch.allclose(live(layer, adapter, strength, x), with_weight(layer, expected, x), atol=1e-5)


IN_PIECES = [oft, oft_in_shares, glora, ia3, ia3_on_input, oft_v2, adalora, whole]


@pytest.mark.parametrize("writer", IN_PIECES, ids=lambda writer: writer.__name__)
def test_a_fused_layer_that_the_model_holds_in_pieces(tmp_path, writer):
    """Of the heights of kohya's shares."""
    written = writer(rows=72)
    layers = {name: nn.Linear(IN, rows) for name, rows in (("q", 18), ("k", 18), ("v", 36))}
    if writer is oft:
        # blocks of 4 rows
        layers = {name: nn.Linear(IN, rows) for name, rows in (("q", 20), ("k", 20), ("v", 32))}
    found = read_lora(opened(tmp_path / "x.safetensors", layers, written.tensors), "unet")
    expected = written.changed(torch.cat([layer.weight.data for layer in layers.values()]), 0.4)
    x, start = torch.randn(2, 5, IN), 0
    for (layer, adapter), module in zip(found.items(), layers.values(), strict=True):
        rows = expected[start : start + layer.shape[0]]
        assert torch.allclose(adapter.merge(module.weight.data, 0.4, Workspace("cpu")), rows, atol=2e-6)
        assert torch.allclose(live(module, adapter, 0.4, x), with_weight(module, rows, x), atol=1e-5)
        start += layer.shape[0]


@pytest.mark.parametrize("writer", [oft, butterfly], ids=lambda writer: writer.__name__)
def test_pieces_that_cut_a_block_are_refused(tmp_path, writer):
    layers = {name: nn.Linear(IN, rows) for name, rows in (("q", 18), ("k", 18), ("v", 36))}
    with pytest.raises(LoraError, match=r"cannot be applied: OFT of 'lora_unet_down_0_conv' turns blocks .* 3 pieces"):
        opened(tmp_path / "x.safetensors", layers, writer(rows=72).tensors)


@pytest.mark.parametrize("writer", IN_PIECES, ids=lambda writer: writer.__name__)
def test_a_share_of_a_fused_layer_changes_its_own_rows(tmp_path, writer):
    """As a to_k of a model that holds a qkv."""
    layer, written, x = nn.Linear(IN, 3 * OUT), writer(), torch.randn(2, 5, IN)
    path = tmp_path / "x.safetensors"
    save_file({f"down.0.conv.{end}": value for end, value in written.tensors.items()}, path)
    shapes = {f"qkv.{name}": tuple(value.shape) for name, value in layer.named_parameters()}
    names = Names(
        {"down_0_conv": Target("unet", "down.0.conv", (Piece("qkv", (1, 3)),))}, frozenset(), {"unet": shapes}
    )
    contents = recognise(read_header(path), "x", "x", names)
    file = LoraFile("x", FileStamp.of(path), None, read_header(path), tuple(contents.layers))
    ((found, adapter),) = read_lora(file, "unet").items()
    assert found.into == (OUT, 2 * OUT)
    before, expected = layer.weight.data, layer.weight.data.clone()
    expected[OUT : 2 * OUT] = written.changed(before[OUT : 2 * OUT], 0.4)
    assert torch.allclose(live(layer, adapter, 0.4, x, found.into), with_weight(layer, expected, x), atol=1e-5)


BAD = {
    "blocks that are not square": ({"oft_blocks": rand(6, 4, 3)}, "oft_blocks [6, 4, 3] are no square blocks"),
    "rows of another width": ({"oft_blocks": rand(5, 4, 4)}, "[24, 16] in the model, and the file's tensors make [20"),
    "a rescale of another length": (
        {"oft_blocks": rand(6, 4, 4), "rescale": rand(5, 1)}, "rescale [5, 1] does not fit 24 rows",
    ),
    "rescale alone": ({"rescale": rand(OUT, 1)}, "lacks oft_blocks"),
    "no butterfly": ({"oft_blocks": rand(4, 6, 4, 4)}, "oft_blocks [4, 6, 4, 4] are no butterfly"),
    "columns of another width": ({"oft_R.weight": rand(5, 6)}, "the file's tensors make [24, 20]"),
    "no triangle": ({"oft_R.weight": rand(4, 5)}, "oft_R [4, 5] holds no triangles"),
    "halves that do not multiply": (
        {"a1.weight": rand(16, 4), "a2.weight": rand(3, 16), "b1.weight": rand(24, 4), "b2.weight": rand(4, 16)},
        "a1 [16, 4], a2 [3, 16], b1 [24, 4], b2 [4, 16] do not multiply",
    ),
    "half of a GLoRA": ({"a1.weight": rand(16, 4)}, "lacks glora_a2, glora_b1, glora_b2"),
    "numbers for neither": ({"weight": rand(7), "on_input": torch.tensor(1)}, "the file's tensors make [7, 16]"),
    "numbers that on_input denies": (
        {"weight": rand(16), "on_input": torch.tensor(0)}, "is of another length than on_input says",
    ),
    "on_input alone": ({"on_input": torch.tensor(1)}, "lacks ia3_weight"),
    "a weight alone": ({"weight": rand(16)}, "keys that are of no known kind"),
    "ia3_l of no side": ({"ia3_l": rand(16)}, "does not tell whether it is for rows or columns"),
    "lora_E of another rank": (
        {"lora_A": rand(4, IN), "lora_B": rand(OUT, 4), "lora_E": rand(3, 1)}, "lora_E [3, 1] does not fit lora_A",
    ),
    "two changes of which one is made of the weight": (
        {"oft_blocks": rand(6, 4, 4), "diff": rand(OUT, IN)}, "changes rows 0 to 23 of 'conv.weight' twice",
    ),
    "NaN in alpha": ({"oft_blocks": rand(6, 4, 4), "alpha": torch.tensor(torch.nan)}, "holds NaN or Inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    tensors, message = BAD[name]
    with pytest.raises(LoraError) as caught:
        read_lora(opened(tmp_path / "x.safetensors", nn.Linear(IN, OUT), tensors), "unet")
    assert message in str(caught.value), str(caught.value)


def test_oft_v2_of_a_convolution_is_refused(tmp_path):
    with pytest.raises(LoraError, match="disagree on what it does to a convolution"):
        opened(tmp_path / "x.safetensors", nn.Conv2d(IN, OUT, 3), {"oft_R.weight": rand(36, 6)})


@pytest.mark.parametrize(("title", "writer"), WRITERS[:-1], ids=IDS[:-1])
def test_what_changes_nothing_is_zero(tmp_path, title, writer):
    tensors = {key: value if key in ("on_input", "alpha") else value * 0 for key, value in writer().tensors.items()}
    if "rescale" in tensors:
        tensors["rescale"] += 1
    ((_, adapter),) = read_lora(opened(tmp_path / "x.safetensors", nn.Linear(IN, OUT), tensors), "unet").items()
    assert adapter.is_zero


# ---- PEFT's own code ------------------------------------------------------------------------------------------------

CONFIGS = {
    "OFT": lambda: OFTConfig(r=0, oft_block_size=4, target_modules=["conv"]),
    "OFT, blocks shared": lambda: OFTConfig(r=0, oft_block_size=8, block_share=True, target_modules=["conv"]),
    "IA3": lambda: IA3Config(target_modules=["conv"], feedforward_modules=[]),
    "IA3 on inputs": lambda: IA3Config(target_modules=["conv"], feedforward_modules=["conv"]),
    "AdaLoRA": lambda: AdaLoraConfig(init_r=RANK, lora_alpha=RANK, total_step=9, target_modules=["conv"]),
}


@pytest.mark.parametrize("adapter", ["", ".default", ".my-style"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saves_is_what_peft_computes(tmp_path, name, adapter):
    """IA3 of rows multiplies the bias too."""
    layer = nn.Linear(IN, OUT)
    own = {"weight": layer.weight.data.clone(), "bias": layer.bias.data.clone()}
    model = get_peft_model(nn.ModuleDict({"conv": layer}), CONFIGS[name]())
    for key, value in model.named_parameters():
        if any(part in key for part in ("oft_R", "lora_", "ia3_l")):
            value.data = value.data + torch.randn_like(value) / 4
    x = torch.randn(2, 5, IN)
    with torch.no_grad():
        expected = model.base_model.model["conv"](x)
    tensors = {}
    for key, value in get_peft_model_state_dict(model).items():
        end = key.removeprefix("base_model.model.conv.")
        stem, dot, leaf = end.partition(".")
        tensors[f"{stem}{adapter}{dot}{leaf}"] = value
    plain = nn.Linear(IN, OUT)
    plain.weight.data, plain.bias.data = own["weight"], own["bias"]
    file = opened(tmp_path / "x.safetensors", plain, tensors)
    merged, weight = nn.Linear(IN, OUT), None
    merged.load_state_dict(own)
    for found, change in read_lora(file, "unet").items():
        value = change.merge(own[found.leaf], 1.0, Workspace("cpu"))
        getattr(merged, found.leaf).data = value
        weight = change if found.leaf == "weight" else weight
    assert weight is not None
    with torch.no_grad():
        assert torch.allclose(merged(x), expected, atol=1e-5)
        # a bias is changed in place, also where the weight is not
        plain.bias.data = merged.bias.data
        assert torch.allclose(live(plain, weight, 1.0, x), expected, atol=1e-5)


def test_adalora_is_divided_by_the_rank_of_its_beginning(tiny):
    """From PEFT's configuration beside the file; the layer has fewer ranks left."""
    own = tiny("lumina2")
    folder = own.folder / "adalora"
    folder.mkdir()
    down, up, numbers = rand(2, 96), rand(96, 2), rand(2, 1)
    name = "base_model.model.layers.0.attn.to_out.0"
    save_file(
        {f"{name}.lora_A": down, f"{name}.lora_B": up, f"{name}.lora_E": numbers}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "ADALORA", "init_r": 6, "lora_alpha": 9}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    ((_, adapter),) = read_lora(own.open_path(folder / "adapter_model.safetensors"), "transformer").items()
    expected = up @ numbers.flatten().diag() @ down * 9 / (6 + 1e-5)
    assert torch.allclose(adapter.merge(torch.zeros(96, 96), 1.0, Workspace("cpu")), expected, atol=1e-6)


@pytest.mark.parametrize("setting", ["use_cayley_neumann", "num_cayley_neumann_terms", "coft"])
def test_oft_of_other_settings_is_refused(tiny, setting):
    own = tiny("lumina2")
    folder = own.folder / setting
    folder.mkdir()
    path = folder / "adapter_model.safetensors"
    save_file({"base_model.model.layers.0.attn.to_out.0.oft_R.weight": rand(24, 6)}, path)
    config = folder / "adapter_config.json"
    usual = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": False}
    config.write_text(json.dumps(usual))
    assert own.open_path(path).title == "OFTv2"
    config.write_text(json.dumps(usual | {setting: {True: False, 5: 3, False: True}[usual[setting]]}))
    with pytest.raises(LoraError, match="changes how OFT's blocks are made"):
        own.open_path(path)


# ---- in a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("application", "quantization"), [("merged", "none"), ("live", "none"), ("auto", "qint8"), ("auto", "fp8_e4m3fn")]
)
def test_in_a_model_however_it_is_held(engine, tiny, application, quantization):
    """A fused qkv of OFT in FLUX.2, an IA3 and a GLoRA; taken off, the weights are as before."""
    own = tiny("flux2_klein_4b")
    qkv, out, linear = "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj", "single_blocks.0.linear2"
    shapes = {name: own.shapes[f"{name}.weight"] for name in (qkv, out, linear)}
    blocks, numbers = rand(shapes[qkv][0] // 8, 8, 8), rand(shapes[out][0])
    a1, a2 = rand(shapes[linear][1], 2), rand(2, shapes[linear][1]) / 8
    b1, b2 = rand(shapes[linear][0], 2), rand(2, shapes[linear][1])
    file = own.open(
        {
            f"oft_unet_{qkv.replace('.', '_')}.oft_blocks": blocks,
            f"lycoris_{out.replace('.', '_')}.weight": numbers,
            f"lycoris_{out.replace('.', '_')}.on_input": torch.tensor(0),
            f"diffusion_model.{linear}.a1.weight": a1,
            f"diffusion_model.{linear}.a2.weight": a2,
            f"diffusion_model.{linear}.b1.weight": b1,
            f"diffusion_model.{linear}.b2.weight": b2,
        }
    )
    assert file.title == "GLoRA and OFT and IA3" and "no rank" in summary(file)
    options = RuntimeOptions(transformer_quantization=quantization)
    base = PipelineHandle(own.model, own.checkpoint, "float32", options)
    spec = LoraSpec(file.header.path.name, file.stamp, 0.4, application, file.title, file.mergeable, file.parts)

    def effective(handle: PipelineHandle) -> Tensors:
        """What each layer multiplies by."""
        engine.apply_loras(wanted(engine, handle, "trainer preview"), "transformer", SilentObserver())
        with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
            return {n: transformer.get_submodule(n)(torch.eye(shape[1])).T for n, shape in shapes.items()}

    before = effective(base)
    turn = torch.block_diag(*cayley(blocks))
    expected = {
        qkv: turning(before[qkv], turn, 0.4),
        out: before[out] * (1 + 0.4 * numbers)[:, None],
        linear: before[linear] + 0.4 * (before[linear] @ a1 @ a2 + b1 @ b2),
    }
    found = effective(base.with_lora(spec))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name
        assert not torch.allclose(found[name], before[name], atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in effective(base).items())


def test_widths_tell_a_file_for_another_size(tiny):
    own = tiny("flux2_klein_4b")
    for tensors in (
        {"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks": (4, 3072, 3072)},
        {"diffusion_model.double_blocks.0.img_attn.qkv.oft_R.weight": (128, 496)},
        {
            "lycoris_double_blocks_0_img_attn_qkv.a1.weight": (4096, 4),
            "lycoris_double_blocks_0_img_attn_qkv.a2.weight": (4, 4096),
            "lycoris_double_blocks_0_img_attn_qkv.b1.weight": (12288, 4),
            "lycoris_double_blocks_0_img_attn_qkv.b2.weight": (4, 4096),
        },
        {"base_model.model.double_blocks.0.img_attn.qkv.ia3_l": (1, 4096)},
    ):
        header = Header(own.folder, {key: TensorInfo("BF16", shape) for key, shape in tensors.items()}, {})
        with pytest.raises(LoraError, match=r"looks like one for FLUX\.2-klein 9B"):
            recognise(header, "x", "FLUX.2-klein 4B", own.names)
