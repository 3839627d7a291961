"""LoRA files that name shares of the model's layers, as diffusers' to_q, to_k and to_v are thirds of a fused qkv.

Lumina2's own layers are given such names here: the model is real, the naming is made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.containers import write_gguf
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.lora.kinds import Adapter, Kind, difference, dora, full_rank, loha, lokr, low_rank
from comfyui_aitk.pipelines.lora.kinds.decomposed import Decomposed
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import catalogue, find_model
from comfyui_aitk.pipelines.models.facts import LoraNames, Spelling
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.pieces import Piece
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from rendering import wanted
from safetensors.torch import save_file
from torch import nn

LUMINA = find_model("lumina2")
Tensors = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STRENGTH = -0.7
BY_COLUMNS = "LoRA, dora_scale by columns"
LAYER = "layers.0"
# [384, 96] with a bias, twice [512, 96], and [96, 96] in the tiny model
MODULATION, OUT = f"{LAYER}.norm1.linear", f"{LAYER}.attn.to_out.0"
UP, GATE = f"{LAYER}.feed_forward.linear_1", f"{LAYER}.feed_forward.linear_3"
# a file's name -> the pieces whose rows it holds
BLOCK = {
    "blocks.0.to_q": (Piece(MODULATION, (0, 3)),),
    "blocks.0.to_k": (Piece(MODULATION, (1, 3)),),
    "blocks.0.to_v": (Piece(MODULATION, (2, 3)),),
    "blocks.0.upper": (Piece(UP, (0, 2)),),
    "blocks.0.out": (Piece(OUT),),
    # its halves the other way round
    "blocks.0.swapped": (Piece(GATE, (1, 2)), Piece(GATE, (0, 2))),
    # rows of several modules
    "blocks.0.gathered": (Piece("layers.1.attn.to_k"), Piece("layers.1.feed_forward.linear_1", (3, 4))),
}  # fmt: skip
MODULES = sorted({piece.module for pieces in BLOCK.values() for piece in pieces})
# what overlaps with those above, or does not divide
ODD = {
    "blocks.0.qkv": (Piece(MODULATION),),
    "blocks.0.half": (Piece(MODULATION, (0, 2)),),
    "blocks.0.fifth": (Piece(MODULATION, (0, 5)),),
}


def _names(modules: Iterable[str]) -> Mapping[str, tuple[Piece, ...]]:
    return BLOCK | ODD


MODEL = replace(
    LUMINA,
    id="lumina2-in-shares",
    lora=LoraNames((Spelling("transformer.", names=_names), Spelling("lora_unet_", "transformer", "_", _names)), ["x"]),
)


@pytest.fixture(autouse=True, scope="module")
def model():
    """The naming above in the catalogue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalogue(), MODEL.id, MODEL)
        yield


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PlainMachine())


# ---- kinds: what a file holds of a layer of some size, and what is added to some rows of its weight by hand ---------

Writer = Callable[[int, int, torch.Generator], Tensors]
ByHand = Callable[[Tensors, slice, float], torch.Tensor]


def _pair(rows: int, columns: int, random: torch.Generator) -> Tensors:
    down, up = torch.randn(4, columns, generator=random), torch.randn(rows, 4, generator=random) / 8
    return {"lora_A.weight": down, "lora_B.weight": up, "alpha": torch.tensor(2.0)}


def _pair_by_hand(tensors: Tensors, rows: slice, strength: float) -> torch.Tensor:
    return strength * (tensors["lora_B.weight"][rows] @ tensors["lora_A.weight"]) * 0.5


def _lokr(rows: int, columns: int, random: torch.Generator) -> Tensors:
    # two blocks of rows: the second piece of `gathered` begins within the first
    w1, w2 = torch.randn(2, 8, generator=random), torch.randn(rows // 2, columns // 8, generator=random)
    return {"lokr_w1": w1 / 4, "lokr_w2": w2 / 4}


def _lokr_low_rank(rows: int, columns: int, random: torch.Generator) -> Tensors:
    w1 = _lokr(rows, columns, random)["lokr_w1"]
    w2_a, w2_b = torch.randn(rows // 2, 2, generator=random), torch.randn(2, columns // 8, generator=random)
    return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": torch.tensor(0.5)}


def _lokr_by_hand(tensors: Tensors, rows: slice, strength: float) -> torch.Tensor:
    whole = "lokr_w2" in tensors
    w2 = tensors["lokr_w2"] if whole else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    return torch.kron(tensors["lokr_w1"], w2)[rows] * (1.0 if whole else 0.5 / 2) * strength


def _loha(rows: int, columns: int, random: torch.Generator) -> Tensors:
    shapes = {"hada_w1_a": (rows, 2), "hada_w1_b": (2, columns), "hada_w2_a": (rows, 2), "hada_w2_b": (2, columns)}
    factors = {name: torch.randn(shape, generator=random) / 2 for name, shape in shapes.items()}
    return factors | {"alpha": torch.tensor(1.0)}


def _loha_by_hand(tensors: Tensors, rows: slice, strength: float) -> torch.Tensor:
    first = tensors["hada_w1_a"][rows] @ tensors["hada_w1_b"]
    return first * (tensors["hada_w2_a"][rows] @ tensors["hada_w2_b"]) * 0.5 * strength


def _dense(suffix: str) -> Writer:
    return lambda rows, columns, random: {suffix: torch.randn(rows, columns, generator=random) / 8}


def _dense_by_hand(tensors: Tensors, rows: slice, strength: float) -> torch.Tensor:
    (delta,) = tensors.values()
    return strength * delta[rows]


def _with_norms(writer: Writer, role: str, shape: Callable[[int, int], tuple[int, ...]]) -> Writer:
    """``shape``: that of the norms, from rows and columns."""
    return lambda rows, columns, random: (
        writer(rows, columns, random) | {role: torch.rand(shape(rows, columns), generator=random) + 0.5}
    )


KINDS: dict[str, tuple[Kind, Writer, ByHand]] = {
    "LoRA": (low_rank.KIND, _pair, _pair_by_hand),
    "LoKr": (lokr.KIND, _lokr, _lokr_by_hand),
    "LoKr with a rank": (lokr.KIND, _lokr_low_rank, _lokr_by_hand),
    "LoHa": (loha.KIND, _loha, _loha_by_hand),
    "full rank": (full_rank.KIND, _dense("lora_A.weight"), _dense_by_hand),
    "difference": (difference.KIND, _dense("diff"), _dense_by_hand),
}
MERGEABLE = tuple(KINDS)
KINDS |= {
    "DoRA": (dora.KIND, _with_norms(_pair, "magnitude", lambda rows, _: (rows,)), _pair_by_hand),
    "LoRA, dora_scale": (low_rank.KIND, _with_norms(_pair, "dora_scale", lambda rows, _: (rows, 1)), _pair_by_hand),
    "LoHa, dora_scale": (loha.KIND, _with_norms(_loha, "dora_scale", lambda rows, _: (rows, 1)), _loha_by_hand),
    "LoKr, dora_scale": (lokr.KIND, _with_norms(_lokr, "dora_scale", lambda rows, _: (rows, 1)), _lokr_by_hand),
    BY_COLUMNS: (low_rank.KIND, _with_norms(_pair, "dora_scale", lambda _, columns: (1, columns)), _pair_by_hand),
}
DECOMPOSED = tuple(name for name in KINDS if name not in MERGEABLE)


def _names_for(kind: str) -> list[str]:
    """Those whose pieces are changed by themselves: the columns of several are as long as all make them."""
    return [name for name, pieces in BLOCK.items() if kind != BY_COLUMNS or len(pieces) == 1]


def _write(
    path: Path, checkpoint: Checkpoint, writer: Writer, names: Iterable[str], seed: int = 0
) -> dict[str, Tensors]:
    """A file of such layers; returns its tensors, by name and suffix."""
    infos = checkpoint.source("transformer").tensor_infos()
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for name in names:
        spans = [(piece, piece.rows(infos[f"{piece.module}.weight"].shape[0])) for piece in BLOCK[name]]
        rows, columns = sum(last - first for _, (first, last) in spans), infos[f"{spans[0][0].module}.weight"].shape[1]
        layers[name] = writer(rows, columns, random)
    tensors = {f"transformer.{name}.{suffix}": v for name, own in layers.items() for suffix, v in own.items()}
    save_file(tensors, path)
    return layers


def _changes(layers: Mapping[str, Tensors], shapes: Mapping[str, tuple[int, ...]]):
    """(module, its rows, the file's tensors, their rows) of each piece of each layer of a file."""
    for name, tensors in layers.items():
        start = 0
        for piece in BLOCK[name]:
            rows = slice(*piece.rows(shapes[f"{piece.module}.weight"][0]))
            end = start + rows.stop - rows.start
            yield piece.module, rows, tensors, slice(start, end)
            start = end


def _with_lora(handle: PipelineHandle, path: Path, strength: float, application: str = "auto") -> PipelineHandle:
    file = open_lora(path, path.name, MODEL, handle.checkpoint)
    spec = (file.title, file.mergeable, file.parts)
    return handle.with_lora(LoraSpec(path.name, FileStamp.of(path), strength, application, *spec))


def _weights(engine: Engine, handle: PipelineHandle, recipe: str = "trainer preview") -> Tensors:
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return {name: value.clone() for name, value in transformer.state_dict().items()}


def _input(module: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(len(module))).to(dtype)


def _outputs(engine: Engine, handle: PipelineHandle, recipe: str = "trainer preview") -> Tensors:
    """What each layer that the naming touches makes of :func:`_input`."""
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return {module: transformer.get_submodule(module)(_input(module, DTYPES[handle.dtype])) for module in MODULES}


def _dense_weights(engine: Engine, handle: PipelineHandle) -> Tensors:
    """The layers' weights as they are held, in float32."""
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        weights = {module: transformer.get_submodule(module).weight for module in MODULES}
        return {m: (w if type(w) is nn.Parameter else w.dequantize()).float() for m, w in weights.items()}


def _adapter(kind: Kind, tensors: Tensors, rows: slice) -> Adapter:
    roles = {kind.suffixes[f".{suffix}"]: value for suffix, value in tensors.items() if suffix != "dora_scale"}
    adapter = kind.make(roles)
    if "dora_scale" in tensors:
        adapter = Decomposed.of(adapter, tensors["dora_scale"])
        if len(tensors["dora_scale"]) == 1:
            return adapter
    return adapter.rows(rows.start, rows.stop)


def _assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# ---- merged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MERGEABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_only_these_rows_change_with_one_rounding(engine, checkpoint, tmp_path, dtype, name):
    _, writer, by_hand = KINDS[name]
    path = tmp_path / "x.safetensors"
    layers = _write(path, checkpoint, writer, BLOCK)
    base = PipelineHandle(MODEL.id, checkpoint, dtype)
    before = _weights(engine, base)
    expected = {name: value.clone() for name, value in before.items()}
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    for module, rows, tensors, held in _changes(layers, shapes):
        own = expected[f"{module}.weight"]
        own[rows] = (own[rows].float() + by_hand(tensors, held, STRENGTH)).to(own.dtype)
    _assert_equal(_weights(engine, _with_lora(base, path, STRENGTH, "merged")), expected)
    changed = [name for name in before if not torch.equal(before[name], expected[name])]
    assert sorted(changed) == [f"{module}.weight" for module in MODULES]
    engine.counters.tensors_restored = 0
    _assert_equal(_weights(engine, base), before)
    assert engine.counters.tensors_restored == len(changed)


@pytest.mark.parametrize("recipe", ["trainer preview", "sd-scripts"])
def test_merged_in_list_order_and_rounded_as_the_recipe_does(engine, checkpoint, tmp_path, recipe):
    """sd-scripts rounds to the dtype of the file, bfloat16 here, also in a run in float32."""
    dtype = "float32" if recipe == "sd-scripts" else "bfloat16"
    base = PipelineHandle(MODEL.id, checkpoint, dtype)
    before = _weights(engine, base)
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    expected = {name: value.to(torch.bfloat16, copy=True) for name, value in before.items()}
    handle = base
    files = (("a", ["blocks.0.to_k", "blocks.0.swapped"]), ("b", ["blocks.0.to_q", "blocks.0.to_k"]), ("c", BLOCK))
    for seed, (title, names) in enumerate(files):
        path = tmp_path / f"{title}.safetensors"
        layers = _write(path, checkpoint, _pair, names, seed)
        for module, rows, tensors, held in _changes(layers, shapes):
            own = expected[f"{module}.weight"]
            own[rows] = (own[rows].float() + _pair_by_hand(tensors, held, STRENGTH + seed)).to(torch.bfloat16)
        handle = _with_lora(handle, path, STRENGTH + seed, "merged")
    found = _weights(engine, handle, recipe)
    _assert_equal(found, {name: value.to(found[name].dtype) for name, value in expected.items()})
    _assert_equal(_weights(engine, base), before)


def test_a_merge_that_is_interrupted_leaves_the_weights_as_they_were(engine, checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    _write(path, checkpoint, _pair, BLOCK)
    base = PipelineHandle(MODEL.id, checkpoint, "float32")
    before = _weights(engine, base)

    class Interrupted(SilentObserver):
        def __init__(self, left: int) -> None:
            self.left = left

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    handle = _with_lora(base, path, 1.0, "merged")
    # its file is known after it: no check is for its reading
    engine.apply_loras(wanted(engine, handle), "transformer", SilentObserver())
    restored = []
    for left in range(100):
        engine.apply_loras(wanted(engine, base), "transformer", SilentObserver())
        engine.counters.tensors_restored = 0
        try:
            engine.apply_loras(wanted(engine, handle), "transformer", Interrupted(left))
        except KeyboardInterrupt:
            restored.append(engine.counters.tensors_restored)
            _assert_equal(_weights(engine, base), before)
            continue
        break
    # before the first tensor; then `gathered` and `out`, and `swapped` before each of its halves
    assert restored[0] == 0
    assert {1, 2, 3} <= set(restored)


# ---- live -----------------------------------------------------------------------------------------------------------


def _held(held: str, checkpoint: Checkpoint, models: Path, folder: Path, dtype: str) -> PipelineHandle:
    if held == "GGUF":
        file = write_gguf(folder / "tiny.gguf", models / "diffusers" / "tiny", "Q8_0")
        parts = {source.component: source for source in checkpoint.sources}
        checkpoint = Checkpoint.assemble("tiny", parts | open_single_file(file, file.name, LUMINA.files), LUMINA.files)
    options = RuntimeOptions(transformer_quantization="none" if held == "GGUF" else held)
    return PipelineHandle(MODEL.id, checkpoint, dtype, options)


CASES = [
    ("none", "float32"),
    ("none", "bfloat16"),
    ("qint8", "bfloat16"),
    ("fp8_e4m3fn", "bfloat16"),
    ("GGUF", "bfloat16"),
]


@pytest.mark.parametrize(("held", "dtype"), CASES)
def test_live_a_share_gets_what_a_layer_of_its_own_would(engine, checkpoint, models, tmp_path, held, dtype):
    """To the bit: two files on top of each other, the branches on hand-split layers; the other rows keep their bits."""
    base = _held(held, checkpoint, models, tmp_path, dtype)
    before = _outputs(engine, base)
    weights = _dense_weights(engine, base)
    shapes = {f"{module}.weight": tuple(value.shape) for module, value in weights.items()}
    for name, (kind, writer, _) in KINDS.items():
        path = tmp_path / f"{name}.safetensors"
        layers = _write(path, checkpoint, writer, _names_for(name))
        handle = _with_lora(_with_lora(base, path, STRENGTH, "live"), path, 0.3, "live")
        for recipe in MODEL.recipes if name == "LoRA" else ["trainer preview"]:
            expected = {module: output.clone() for module, output in before.items()}
            for strength in (STRENGTH, 0.3):
                for module, rows, tensors, own in _changes(layers, shapes):
                    split = nn.Linear(96, own.stop - own.start, bias=False)
                    split.weight = nn.Parameter(weights[module][rows].clone(), requires_grad=False)
                    branch = _adapter(kind, tensors, own).branch(
                        strength, DTYPES[dtype], MODEL.recipes[recipe].lora_arithmetic
                    )
                    output = expected[module][..., rows].contiguous()
                    with torch.no_grad():
                        expected[module][..., rows] = branch(split, _input(module, DTYPES[dtype]), output)
            _assert_equal(_outputs(engine, handle, recipe), expected)
            assert torch.equal(expected[UP][..., 256:], before[UP][..., 256:])
            assert not torch.equal(expected[UP][..., :256], before[UP][..., :256])
    _assert_equal(_outputs(engine, base), before)


@pytest.mark.parametrize("held", ["none", "qint8", "fp8_e4m3fn", "GGUF"])
def test_norms_are_those_of_the_share(engine, checkpoint, models, tmp_path, held):
    """Against the formula: at strength 1 all of them scale the changed rows, or the whole layer's columns, to the
    norms."""
    base = _held(held, checkpoint, models, tmp_path, "float32")
    before = _outputs(engine, base)
    weights = _dense_weights(engine, base)
    shapes = {f"{module}.weight": tuple(value.shape) for module, value in weights.items()}
    for name in DECOMPOSED:
        _, writer, by_hand = KINDS[name]
        path = tmp_path / f"{name}.safetensors"
        layers = _write(path, checkpoint, writer, BLOCK)
        expected = {module: output.clone() for module, output in before.items()}
        for module, rows, tensors, own in _changes(layers, shapes):
            weight = weights[module][rows]
            whole = weight + by_hand(tensors, own, 1.0)
            if name == BY_COLUMNS:
                pieces = [
                    weights[other][theirs] + by_hand(tensors, held, 1.0)
                    for other, theirs, found, held in _changes(layers, shapes)
                    if found is tensors
                ]
                changed = whole * tensors["dora_scale"] / torch.cat(pieces).norm(dim=0)
            else:
                norms = tensors.get("dora_scale", tensors.get("magnitude"))
                changed = whole * norms[own].reshape(-1, 1) / whole.norm(dim=1, keepdim=True)
            expected[module][..., rows] += _input(module, torch.float32) @ (changed - weight).T
        found = _outputs(engine, _with_lora(base, path, 1.0))
        assert {m for m in found if not torch.allclose(found[m], expected[m], atol=1e-4)} == set(), name
        with pytest.raises(LoraError, match="which its trainer never merges"):
            wanted(engine, _with_lora(base, path, 1.0, "merged"), "trainer preview")


def test_only_branches_that_need_a_weight_make_it_dense(engine, checkpoint, models, tmp_path, monkeypatch):
    """And then only its rows."""
    from comfyui_aitk.pipelines.files.packed import PackedTensor

    base = _held("GGUF", checkpoint, models, tmp_path, "float32")
    made: list[tuple[int, ...]] = []
    dequantize = PackedTensor.dequantize

    def counted(self: PackedTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        made.append(self.shape)
        return dequantize(self, dtype)

    monkeypatch.setattr(PackedTensor, "dequantize", counted)
    _outputs(engine, base)
    own = sorted(made)
    for name, expected in (("LoRA", []), ("LoHa", []), ("LoKr", []), ("DoRA", [(256, 96)])):
        path = tmp_path / f"{name}.safetensors"
        _write(path, checkpoint, KINDS[name][1], ["blocks.0.upper"])
        made.clear()
        _outputs(engine, _with_lora(base, path, 0.5))
        assert sorted(made) == sorted(own + expected), name


# ---- biases, names, alphas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["merged", "live"])
def test_biases_change_by_rows(engine, checkpoint, tmp_path, application):
    path = tmp_path / "x.safetensors"
    changes = {name: torch.linspace(-1, number + 1, 128) for number, name in enumerate(("to_q", "to_v"))}
    save_file({f"transformer.blocks.0.{name}.diff_b": value for name, value in changes.items()}, path)
    base = PipelineHandle(MODEL.id, checkpoint)
    before = _weights(engine, base)
    expected = {name: value.clone() for name, value in before.items()}
    for name, rows in (("to_q", slice(0, 128)), ("to_v", slice(256, 384))):
        bias = expected[f"{MODULATION}.bias"]
        bias[rows] = (bias[rows].float() + STRENGTH * changes[name]).to(bias.dtype)
    _assert_equal(_weights(engine, _with_lora(base, path, STRENGTH, application)), expected)
    engine.counters.tensors_restored = 0
    _assert_equal(_weights(engine, base), before)
    assert engine.counters.tensors_restored == 1


def test_underscores_name_the_same_shares(engine, checkpoint, tmp_path):
    layers = _write(tmp_path / "dots.safetensors", checkpoint, _pair, BLOCK)
    kohya = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "alpha": "alpha"}
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.{kohya[suffix]}": value
        for name, own in layers.items()
        for suffix, value in own.items()
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    base = PipelineHandle(MODEL.id, checkpoint)
    dots, underscores = (
        _weights(engine, _with_lora(base, tmp_path / f"{name}.safetensors", 1.0, "merged"))
        for name in ("dots", "kohya")
    )
    _assert_equal(underscores, dots)


def _without_alpha(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {suffix: value for suffix, value in _pair(rows, columns, random).items() if suffix != "alpha"}


def test_peft_tells_the_alpha_of_a_share_by_the_files_name(checkpoint, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    _write(path, checkpoint, _without_alpha, BLOCK)
    patterns = {"to_k": 3, "blocks.0.swapped": 5, MODULATION: 7}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "alpha_pattern": patterns}))
    found = {layer.name: layer.alpha for layer in open_lora(path, "x", MODEL, checkpoint).layers}
    assert found == dict.fromkeys(BLOCK, 2.0) | {"blocks.0.to_k": 3.0, "blocks.0.swapped": 5.0}


# ---- errors ---------------------------------------------------------------------------------------------------------


def _zeros(**layers: tuple[int, int]) -> Tensors:
    return {
        f"transformer.blocks.0.{name}.{matrix}.weight": torch.zeros(shape)
        for name, (rows, columns) in layers.items()
        for matrix, shape in (("lora_A", (2, columns)), ("lora_B", (rows, 2)))
    }


BAD = {
    "fused and split": (
        _zeros(to_k=(128, 96), qkv=(384, 96)),
        f"'x' changes rows 128 to 255 of '{MODULATION}.weight' twice, by 'blocks.0.qkv' and 'blocks.0.to_k'. Export",
    ),
    "shares that overlap in part": (
        _zeros(to_v=(128, 96), to_k=(128, 96), half=(192, 96)),
        f"'x' changes rows 128 to 191 of '{MODULATION}.weight' twice, by 'blocks.0.half' and 'blocks.0.to_k'. Export",
    ),
    "biases that overlap": (
        {"transformer.blocks.0.qkv.diff_b": torch.zeros(384), "transformer.blocks.0.to_q.diff_b": torch.zeros(128)},
        f"'x' changes rows 0 to 127 of '{MODULATION}.bias' twice, by 'blocks.0.to_q' and 'blocks.0.qkv'. Export",
    ),
    "the fused layer's size": (
        _zeros(to_q=(384, 96)),
        "'transformer.blocks.0.to_q' is [128, 96] in the model, and the file's tensors make [384, 96]",
    ),
    "a share's size for several": (_zeros(swapped=(256, 96)), "0.swapped' is [512, 96] in the model, and the fil"),
    "a bias of the fused layer's size": (
        {"transformer.blocks.0.to_q.diff_b": torch.zeros(384)}, "'transformer.blocks.0.to_q' is [128] in the model",
    ),
    "a model that does not divide": (
        _zeros(fifth=(77, 96)),
        f"'x' does not fit these weights of {MODEL.title}: 'transformer.blocks.0.fifth' is a share of a layer, and the "
        f"384 rows of {MODULATION!r} are not 5 equal shares. Was it trained on another version or size of the model?",
    ),
    "a dora_scale of the fused layer's size": (
        _zeros(to_q=(128, 96)) | {"transformer.blocks.0.to_q.dora_scale": torch.ones(384, 1)},
        "'transformer.blocks.0.to_q': dora_scale [384, 1] does not fit [128, 96]",
    ),
    "a bias where there is none": (
        {"transformer.blocks.0.upper.diff_b": torch.zeros(128)}, "0.upper' has no bias in the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_names_what_is_wrong(checkpoint, tmp_path, name):
    tensors, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(LoraError) as caught:
        open_lora(path, "x", MODEL, checkpoint)
    assert message in str(caught.value), str(caught.value)
