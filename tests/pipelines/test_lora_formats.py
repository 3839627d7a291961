"""Every format of LoRA files, all written from one change: each gives what that change gives, added by hand.

The change of a layer is kron(a, u) @ kron(b, v) of two vectors and two thin matrices. So it is at once a LoRA of rank
2, a LoKr in every factorisation, a LoHa and a dense difference. Its values are small numbers of sixteenths, so that
float32 and float16 hold every product and sum exactly: merged, files of all formats agree to the bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from comfyui_aitk.headless.tiny.containers import write_dit, write_gguf, write_scaled_float8
from comfyui_aitk.headless.tiny.files import read_part
from comfyui_aitk.headless.tiny.names import QKV, original_dit, original_module
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from rendering import wanted
from safetensors.torch import save_file

MODEL = find_model("lumina2")
STRENGTH = 0.75
Tensors = dict[str, torch.Tensor]


class Change(NamedTuple):
    """``a`` [m], ``b`` [n], ``u`` [out / m, 2], ``v`` [2, in / n]."""

    a: torch.Tensor
    b: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    @classmethod
    def of(cls, rows: int, columns: int, seed: int) -> Change:
        generator = torch.Generator().manual_seed(seed)

        def fractions(*shape: int) -> torch.Tensor:
            return torch.randint(-4, 5, shape, generator=generator) / 16.0

        def powers(count: int) -> torch.Tensor:
            return 0.5 ** torch.randint(0, 2, (count,), generator=generator)

        # of 12: queries, keys and values are whole blocks of it, and regrouped to 3 they are not
        blocks = 12 if rows % 12 == 0 else 4
        a = torch.kron(powers(blocks // 4), powers(4))
        return cls(a, powers(4), fractions(rows // blocks, 2), fractions(2, columns // 4))

    @property
    def up(self) -> torch.Tensor:
        return torch.kron(self.a[:, None], self.u)

    @property
    def down(self) -> torch.Tensor:
        return torch.kron(self.b[None], self.v)

    @property
    def delta(self) -> torch.Tensor:
        return self.up @ self.down

    def rows(self, first: int, last: int) -> Change:
        height = len(self.u)
        return self._replace(a=self.a[first // height : last // height])

    def regrouped(self) -> Change:
        """The same with blocks four times as high."""
        return self._replace(a=self.a[::4] / self.a[0], u=torch.kron(self.a[:4, None], self.u))


@dataclass(frozen=True)
class Layer:
    """A layer of the original model, and the model's modules whose rows it holds."""

    change: Change
    weight: torch.Tensor
    pieces: Mapping[str, tuple[int, int]]


# what a format holds of one layer: (change, weight as stored) -> suffix -> tensor
Writer = Callable[[Change, torch.Tensor], Tensors]


def pair(down: str = "lora_A", up: str = "lora_B", alpha: float | None = None, mixed: bool = False) -> Writer:
    """A and B. With ``alpha``, B is larger by rank / alpha; ``mixed`` doubles the rank of wide layers."""

    def write(change: Change, weight: torch.Tensor) -> Tensors:
        a, b = change.down, change.up
        if mixed and a.shape[1] > 96:
            a, b = torch.cat([a, a]), torch.cat([b, b], 1) / 2
        scale = 1.0 if alpha is None else alpha / len(a)
        tensors = {f"{down}.weight": a, f"{up}.weight": b / scale}
        return tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}

    return write


def lokr(first: bool, second: bool, alpha: float | None = None, half: bool = False, high: bool = False) -> Writer:
    """``first``, ``second``: whether w1, w2 are two factors; ``high``: other blocks."""

    def write(change: Change, weight: torch.Tensor) -> Tensors:
        if high:
            change = change.regrouped()
        a, b, u, v = change
        # the rank that counts is that of w2 where it has one
        scale = 1.0 if alpha is None or not (first or second) else alpha / (2 if second else 1)
        w1 = {"lokr_w1_a": a[:, None] / scale, "lokr_w1_b": b[None]} if first else {"lokr_w1": a[:, None] * b / scale}
        w2 = {"lokr_w2_a": u, "lokr_w2_b": v} if second else {"lokr_w2": u @ v}
        tensors = w1 | w2 if alpha is None else w1 | w2 | {"alpha": torch.tensor(alpha)}
        return {name: value.half() if half else value for name, value in tensors.items()}

    return write


def loha(alpha: float | None = None) -> Writer:
    def write(change: Change, weight: torch.Tensor) -> Tensors:
        scale = 1.0 if alpha is None else alpha / 2
        rows, columns = 0.5 ** (torch.arange(len(weight)) % 3), 0.5 ** (torch.arange(weight.shape[1]) % 2)
        tensors = {
            "hada_w1_a": change.up / rows[:, None] / scale, "hada_w1_b": change.down / columns,
            "hada_w2_a": rows[:, None], "hada_w2_b": columns[None],
        }  # fmt: skip
        return tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}

    return write


def with_norms(writer: Writer, role: str, dim: int = 1, keepdim: bool = True) -> Writer:
    """A decomposed file whose norms are those of the changed weight, so that at strength 1 they change nothing."""
    return lambda change, weight: (
        writer(change, weight) | {role: torch.linalg.norm(weight.float() + change.delta, dim=dim, keepdim=keepdim)}
    )


def dense(name: str) -> Writer:
    return lambda change, weight: {name: change.delta}


class Naming(NamedTuple):
    prefix: str
    separator: str = "."
    original: bool = True


KOHYA = Naming("lora_unet_", "_")
LYCORIS = Naming("lycoris_", "_")
COMFYUI = Naming("diffusion_model.")
TOOLKIT = Naming("transformer.", original=False)
OLD_TOOLKIT = Naming("lycoris_", "_", original=False)

PLAIN = {
    "kohya, ranks mixed": (KOHYA, pair("lora_down", "lora_up", alpha=1.0, mixed=True)),
    "kohya without alpha": (KOHYA, pair("lora_down", "lora_up")),
    "ComfyUI A, B": (COMFYUI, pair()),
    "ComfyUI A, B, alpha": (COMFYUI, pair(alpha=0.5)),
    "ComfyUI down, up": (COMFYUI, pair("lora_down", "lora_up")),
    "ComfyUI down, up, alpha": (COMFYUI, pair("lora_down", "lora_up", alpha=8.0, mixed=True)),
    "checkpoint's names": (Naming("model.diffusion_model."), pair()),
    "PEFT, ComfyUI's names": (Naming("base_model.model.diffusion_model."), pair()),
    "original names": (Naming(""), pair("lora_down", "lora_up", alpha=1.0)),
    "original names behind transformer.": (Naming("transformer."), pair()),
    "AI Toolkit": (TOOLKIT, pair()),
    "AI Toolkit, PEFT's default": (TOOLKIT, pair("lora_A.default", "lora_B.default")),
    "AI Toolkit down, up, alpha": (TOOLKIT, pair("lora_down", "lora_up", alpha=4.0)),
    "diffusers' names": (Naming("", original=False), pair()),
    "diffusers' names behind diffusion_model.": (Naming("diffusion_model.", original=False), pair()),
    "PEFT": (Naming("base_model.model.", original=False), pair()),
    "PEFT of a pipeline": (Naming("base_model.model.transformer.", original=False), pair()),
    "LoKr whole": (TOOLKIT, lokr(False, False, alpha=9999999999.0)),
    "LoKr whole in float16": (TOOLKIT, lokr(False, False, alpha=torch.inf, half=True)),
    "LoKr with a rank": (TOOLKIT, lokr(False, True, alpha=1.0)),
    "LoKr, old names": (OLD_TOOLKIT, lokr(False, True, alpha=4.0)),
    "LoKr, LyCORIS' names, w1 in two": (LYCORIS, lokr(True, False, alpha=0.5)),
    "LoKr, LyCORIS on kohya, both in two": (KOHYA, lokr(True, True, alpha=1.0)),
    "LoKr, queries and keys in one block": (KOHYA, lokr(False, True, alpha=1.0, high=True)),
    "LoKr whole, queries and keys in one block": (COMFYUI, lokr(False, False, high=True)),
    "LoHa": (TOOLKIT, loha()),
    "LoHa, LyCORIS on kohya": (KOHYA, loha(alpha=4.0)),
    "full rank": (TOOLKIT, dense("lora_A.weight")),
    "full rank, ComfyUI's names": (COMFYUI, dense("lora_A.weight")),
    "differences": (COMFYUI, dense("diff")),
}
DECOMPOSED = {
    "LoRA with dora_scale": (KOHYA, with_norms(pair("lora_down", "lora_up", alpha=1.0), "dora_scale")),
    "LoRA with flat dora_scale": (COMFYUI, with_norms(pair(), "dora_scale", keepdim=False)),
    "LoRA with dora_scale by columns": (TOOLKIT, with_norms(pair(), "dora_scale", dim=0)),
    "LoHa with dora_scale": (LYCORIS, with_norms(loha(alpha=1.0), "dora_scale")),
    "LoKr with dora_scale": (KOHYA, with_norms(lokr(False, True, alpha=1.0), "dora_scale")),
    "LoKr with dora_scale, queries and keys in one block": (
        KOHYA, with_norms(lokr(False, False, high=True), "dora_scale"),
    ),
    "AI Toolkit's DoRA": (TOOLKIT, with_norms(pair(), "magnitude", keepdim=False)),
    "PEFT's DoRA": (
        Naming("base_model.model.", original=False), with_norms(pair(), "lora_magnitude_vector", keepdim=False),
    ),
    "PEFT's DoRA by ComfyUI's names": (COMFYUI, with_norms(pair(), "lora_magnitude_vector.weight", keepdim=False)),
}  # fmt: skip


@pytest.fixture(scope="module")
def layers(models: Path) -> dict[str, Layer]:
    """Every linear layer of the transformer by its original name, with a change for it."""
    folder = models / "diffusers" / "tiny"
    weights = {name: value for name, value in read_part(folder, "transformer").items() if value.ndim == 2}
    modules: dict[str, dict[str, int]] = {}
    for name in sorted(weights, key=lambda name: next((i for i, part in enumerate(QKV) if part in name), 0)):
        module = name.removesuffix(".weight")
        modules.setdefault(original_module(module), {})[module] = len(weights[name])
    original = original_dit(read_part(folder, "transformer"))
    found = {}
    for seed, (name, heights) in enumerate(sorted(modules.items())):
        ends = torch.tensor([0, *heights.values()]).cumsum(0).tolist()
        weight = original[f"{name}.weight"]
        pieces = dict(zip(heights, pairwise(ends), strict=True))
        found[name] = Layer(Change.of(*weight.shape, seed), weight, pieces)
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PlainMachine())


def write(path: Path, layers: Mapping[str, Layer], naming: Naming, writer: Writer) -> Path:
    tensors: Tensors = {}
    for original, layer in layers.items():
        parts = {original: (0, len(layer.weight))} if naming.original else layer.pieces
        for module, (first, last) in parts.items():
            key = naming.prefix + module.replace(".", naming.separator)
            for suffix, value in writer(layer.change.rows(first, last), layer.weight[first:last]).items():
                tensors[f"{key}.{suffix}"] = value.clone(memory_format=torch.contiguous_format)
    save_file(tensors, path)
    return path


def with_lora(handle: PipelineHandle, path: Path, strength: float, application: str) -> PipelineHandle:
    file = open_lora(path, path.name, MODEL, handle.checkpoint)
    spec = (file.title, file.mergeable, file.parts)
    return handle.with_lora(LoraSpec(path.name, FileStamp.of(path), strength, application, *spec))


def states(engine: Engine, handle: PipelineHandle, recipe: str = "reference pipeline") -> Tensors:
    """The transformer's parameters with the handle's LoRAs."""
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return {name: value.clone() for name, value in transformer.state_dict().items()}


def effective(
    engine: Engine, handle: PipelineHandle, layers: Mapping[str, Layer], recipe: str = "reference pipeline"
) -> Tensors:
    """What each layer multiplies by, found out by giving it the identity: also where branches hang on it."""
    states(engine, handle, recipe)
    found: Tensors = {}
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        for layer in layers.values():
            for module in layer.pieces:
                linear = transformer.get_submodule(module)
                bias = 0 if linear.bias is None else linear.bias
                found[module] = (linear(torch.eye(layer.weight.shape[1])) - bias).T
    return found


def by_hand(layers: Mapping[str, Layer], strength: float) -> Tensors:
    """Each module's change."""
    return {
        module: strength * layer.change.delta[first:last]
        for layer in layers.values()
        for module, (first, last) in layer.pieces.items()
    }


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def assert_close(found: Tensors, expected: Tensors, atol: float) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.allclose(found[name], expected[name], rtol=0, atol=atol)] == []


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_every_format_is_the_change_added_by_hand(engine, checkpoint, layers, tmp_path, dtype, name):
    """To the bit, with one rounding, and nothing else touched; taken off, to the bit as before."""
    path = write(tmp_path / "x.safetensors", layers, *PLAIN[name])
    base = PipelineHandle("lumina2", checkpoint, dtype)
    before = states(engine, base)
    expected = dict(before)
    for module, change in by_hand(layers, STRENGTH).items():
        weight = before[f"{module}.weight"]
        expected[f"{module}.weight"] = (weight.float() + change).to(weight.dtype)
    assert_equal(states(engine, with_lora(base, path, STRENGTH, "merged")), expected)
    assert_equal(states(engine, base), before)


@pytest.mark.parametrize("name", PLAIN | DECOMPOSED)
def test_live_every_format_multiplies_as_the_change_added_by_hand(engine, checkpoint, layers, tmp_path, name):
    strength = STRENGTH if name in PLAIN else 1.0
    path = write(tmp_path / "x.safetensors", layers, *(PLAIN | DECOMPOSED)[name])
    base = PipelineHandle("lumina2", checkpoint, "float32")
    before = states(engine, base)
    expected = {m: before[f"{m}.weight"] + change for m, change in by_hand(layers, strength).items()}
    for recipe in MODEL.recipes:
        found = effective(engine, with_lora(base, path, strength, "live"), layers, recipe)
        assert_close(found, expected, 1e-5)
    assert_equal(states(engine, base), before)


PACKED = ["kohya, ranks mixed", "LoKr with a rank", "LoHa", "full rank", "differences"]
PACKED_DECOMPOSED = ["LoRA with dora_scale", "AI Toolkit's DoRA"]


@pytest.mark.parametrize("held", ["qint8", "fp8_e4m3fn", "GGUF", "scaled float8"])
def test_on_packed_weights_every_kind_is_added_live(engine, checkpoint, layers, tmp_path, models, held):
    in_file, tiny = held in ("GGUF", "scaled float8"), models / "diffusers" / "tiny"
    options = RuntimeOptions(transformer_quantization="none" if in_file else held)
    if in_file:
        if held == "GGUF":
            file = write_gguf(tmp_path / "tiny.gguf", tiny, "Q8_0")
        else:
            plain = write_dit(tmp_path / "plain.safetensors", tiny)
            file = write_scaled_float8(tmp_path / "scaled.safetensors", plain, "new")
        parts = {source.component: source for source in checkpoint.sources}
        checkpoint = Checkpoint.assemble("tiny", parts | open_single_file(file, file.name, MODEL.files), MODEL.files)
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    own = effective(engine, base, layers)
    for name in (*PACKED, *PACKED_DECOMPOSED):
        strength = STRENGTH if name in PACKED else 1.0
        path = write(tmp_path / f"{name}.safetensors", layers, *(PLAIN | DECOMPOSED)[name])
        expected = {module: own[module] + change for module, change in by_hand(layers, strength).items()}
        if name in PACKED_DECOMPOSED:
            # the norms in the file are those of the weights that are not packed
            for layer in layers.values():
                norms = torch.linalg.norm(layer.weight.float() + layer.change.delta, dim=1, keepdim=True)
                for module, (first, last) in layer.pieces.items():
                    changed = expected[module]
                    expected[module] = changed * norms[first:last] / torch.linalg.norm(changed, dim=1, keepdim=True)
        assert_close(effective(engine, with_lora(base, path, strength, "auto"), layers), expected, 1e-5)
    assert_equal(effective(engine, base, layers), own)


def test_strength_of_dora_scale_leads_straight_from_the_weight_to_the_decomposed_one(
    engine, checkpoint, layers, tmp_path
):
    """LyCORIS' rule at 1; in between the line that ComfyUI draws."""
    name = "layers.1.attention.out"
    layer = layers[name]
    scale = torch.linspace(0.5, 2.0, len(layer.weight))[:, None]
    path = write(tmp_path / "x.safetensors", {name: layer}, KOHYA, lambda c, w: pair()(c, w) | {"dora_scale": scale})
    weight = layer.weight.float()
    changed = weight + layer.change.delta
    decomposed = changed * scale / changed.norm(dim=1, keepdim=True)
    base = PipelineHandle("lumina2", checkpoint, "float32")
    for strength in (1.0, 0.25, -0.5):
        (found,) = effective(engine, with_lora(base, path, strength, "auto"), {name: layer}).values()
        assert torch.allclose(found, weight + strength * (decomposed - weight), atol=1e-5)


@pytest.mark.parametrize(
    ("application", "quantization"),
    [("merged", "none"), ("live", "none"), ("live", "qint8"), ("live", "fp8_e4m3fn")],
    ids=str,
)
def test_differences_of_norms_and_biases_are_added(engine, checkpoint, layers, tmp_path, application, quantization):
    """Biases and norms are changed in place in every case: no branch can."""
    name = "layers.0.adaLN_modulation.1"
    tensors = {f"diffusion_model.{name}.{k}": v.contiguous() for k, v in pair()(layers[name].change, None).items()}
    modules = {
        "layers.0.attention_norm1.diff": "layers.0.norm1.norm.weight",
        "context_refiner.0.attention_norm1.diff": "context_refiner.0.norm1.weight",
        "layers.1.attention.k_norm.diff": "layers.1.attn.norm_k.weight",
        "cap_embedder.0.diff": "time_caption_embed.caption_embedder.0.weight",
        "x_embedder.diff_b": "x_embedder.bias",
        f"{name}.diff_b": "layers.0.norm1.linear.bias",
    }
    options = RuntimeOptions(transformer_quantization=quantization)
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    before = states(engine, base)
    expected = {}
    for key, parameter in modules.items():
        change = torch.linspace(-1, 1, len(before[parameter]))
        tensors[f"diffusion_model.{key}"] = change
        expected[parameter] = before[parameter] + 0.5 * change
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    after = states(engine, with_lora(base, path, 0.5, application))
    assert_equal({parameter: after[parameter] for parameter in expected}, expected)
    changed = {parameter for parameter in before if not torch.equal(before[parameter], after[parameter])}
    assert changed == expected.keys() | ({"layers.0.norm1.linear.weight"} if application == "merged" else set())
    assert_equal(states(engine, base), before)


@pytest.fixture(scope="module")
def merged_by_hand(models: Path, layers, tmp_path_factory) -> Checkpoint:
    """The checkpoint with the change in its weights, which are stored in float32."""
    folder = tmp_path_factory.mktemp("by hand") / "tiny"
    shutil.copytree(models / "diffusers" / "tiny", folder)
    tensors = {name: value.float() for name, value in read_part(folder, "transformer").items()}
    for module, change in by_hand(layers, 1.0).items():
        tensors[f"{module}.weight"] += change
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file(tensors, file)
    return Checkpoint.open(folder, "by hand", MODEL.files)


# of live pictures, whose roundings are at other places: |difference| / |picture| of the latents; measured 8e-7, 0.018
SPREAD = {"float32": 1e-5, "bfloat16": 0.03}
PICTURES = ["kohya, ranks mixed", "AI Toolkit", "LoKr with a rank", "LoHa, LyCORIS on kohya", "differences"]


@pytest.mark.parametrize("dtype", SPREAD)
def test_whole_pictures_are_those_of_the_weights_merged_by_hand(
    engine, checkpoint, layers, merged_by_hand, tmp_path, dtype
):
    def latent(handle: PipelineHandle) -> torch.Tensor:
        request = SampleRequest("reference pipeline", "a red fox", width=64, height=64, steps=2, seed=3)
        return sample(engine, handle, request, SilentObserver()).latent.float()

    expected = latent(PipelineHandle("lumina2", merged_by_hand, dtype))
    base = PipelineHandle("lumina2", checkpoint, dtype)
    without = latent(base)
    assert (without - expected).norm() > 0.1 * expected.norm(), "the change is seen"
    for name in PICTURES + PACKED_DECOMPOSED:
        path = write(tmp_path / f"{name}.safetensors", layers, *(PLAIN | DECOMPOSED)[name])
        if name in PLAIN:
            assert torch.equal(latent(with_lora(base, path, 1.0, "merged")), expected), name
        live = latent(with_lora(base, path, 1.0, "live"))
        assert (live - expected).norm() <= SPREAD[dtype] * expected.norm(), name
    assert torch.equal(latent(base), without)
