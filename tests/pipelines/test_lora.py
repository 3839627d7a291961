"""LoRAs on a real (tiny) transformer: merged and live against the same deltas by hand, and undone exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.lora.kinds.branches import times
from comfyui_aitk.pipelines.lora.kinds.kind import has_values, merged
from comfyui_aitk.pipelines.lora.kinds.loha import LoHa
from comfyui_aitk.pipelines.lora.kinds.low_rank import LowRank
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import wanted
from safetensors.torch import load_file, save_file

LAYER = "layers.1.attn.to_q"
MODEL = find_model("lumina2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _spec(path, strength: float = 1.0, application: str = "auto") -> LoraSpec:
    return LoraSpec(path.name, FileStamp.of(path), strength, application)


def _left(path, strength: float) -> LoraSpec:
    """What a preview round of AI Toolkit's leaves of a LoRA."""
    return replace(_spec(path, strength), taken_off=True)


def _weights(engine, handle, recipe: str = "trainer preview") -> dict[str, torch.Tensor]:
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return {name: value.clone() for name, value in transformer.state_dict().items()}


def _run_layer(engine, handle, recipe: str, x: torch.Tensor) -> torch.Tensor:
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return transformer.get_submodule(LAYER)(x)


def _pair(path) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(path)
    return tensors[f"transformer.{LAYER}.lora_A.weight"].float(), tensors[f"transformer.{LAYER}.lora_B.weight"].float()


@pytest.fixture
def stack(tmp_path, checkpoint):
    """Two LoRAs: one on every layer with an alpha that is not its rank, one on the attention alone."""
    first = make_lora(
        tmp_path / "first.safetensors", checkpoint.source("transformer").folder, rank=6, alpha=2.0, dtype=torch.float32
    )
    second = make_lora(
        tmp_path / "second.safetensors", checkpoint.source("transformer").folder, rank=3, seed=9, only=["attn"]
    )
    return [(first, 0.7, 2 / 6), (second, -1.3, 1.0)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_stack_is_the_deltas_added_by_hand_with_one_rounding_each(engine, checkpoint, stack, dtype):
    base = PipelineHandle("lumina2", checkpoint, dtype)
    expected = _weights(engine, base)[f"{LAYER}.weight"]
    handle = base
    for path, strength, scale in stack:
        down, up = _pair(path)
        expected = (expected.float() + strength * (up @ down) * scale).to(DTYPES[dtype])
        handle = handle.with_lora(_spec(path, strength))
    assert torch.equal(_weights(engine, handle)[f"{LAYER}.weight"], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_left_is_each_merge_and_its_taking_off_with_a_rounding(engine, checkpoint, stack, dtype):
    """AI Toolkit takes a merge off by the strength's absolute value: below 0 it is there twice."""
    base = PipelineHandle("lumina2", checkpoint, dtype)
    expected = original = _weights(engine, base)[f"{LAYER}.weight"]
    handle, seen = base, []
    for path, strength, scale in stack:
        down, up = _pair(path)
        # of the round, and of what it leaves
        for spec, by in ((_spec(path, strength), (strength,)), (_left(path, strength), (strength, -abs(strength)))):
            value = expected
            for one in by:
                value = (value.float() + one * (up @ down) * scale).to(DTYPES[dtype])
            # what is merged already stays: it is where these begin
            assert torch.equal(_weights(engine, handle.with_lora(spec))[f"{LAYER}.weight"], value)
        assert not torch.equal(value, expected)
        expected, handle = value, handle.with_lora(_left(path, strength))
        seen.append(value)
    # from the checkpoint's own weights it is the same
    assert torch.equal(_weights(engine, base)[f"{LAYER}.weight"], original)
    assert torch.equal(_weights(engine, handle)[f"{LAYER}.weight"], expected)
    # at 0.7 only roundings stay, at -1.3 twice of it
    down, up = _pair(stack[1][0])
    roundings = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    assert (seen[0].float() - original.float()).abs().max() < roundings
    assert torch.allclose(seen[1].float(), original.float() - 2.6 * (up @ down), atol=roundings)


def test_what_rounds_left_is_live_on_quantised_weights_without_its_roundings(engine, checkpoint, stack):
    options = RuntimeOptions(transformer_quantization="qfloat8")
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    plain = _run_layer(engine, base, "trainer preview", x)
    (first, strength, _), (second, negative, _) = stack
    assert torch.equal(_run_layer(engine, base.with_lora(_left(first, strength)), "trainer preview", x), plain)
    down, up = _pair(second)
    ours = _run_layer(engine, base.with_lora(_left(second, negative)), "trainer preview", x)
    assert torch.allclose(ours, plain + 2 * negative * (x @ down.T @ up.T), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_live_branches_are_computed_as_the_recipe_does(engine, checkpoint, stack, dtype):
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    base = PipelineHandle("lumina2", checkpoint, dtype)
    trainer = reference = _run_layer(engine, base, "trainer preview", x)
    handle = base
    for path, strength, scale in stack:
        down, up = _pair(path)
        branch = (x.float() @ down.T @ up.T) * torch.tensor(scale) * torch.tensor([strength])
        trainer = trainer + branch.to(x.dtype)
        down, up = down.to(x.dtype), up.to(x.dtype)
        reference = reference + (x @ down.T @ up.T) * (strength * scale)
        handle = handle.with_lora(_spec(path, strength, "live"))
    assert torch.equal(_run_layer(engine, handle, "trainer preview", x), trainer)
    assert torch.equal(_run_layer(engine, handle, "reference pipeline", x), reference)
    if dtype == "bfloat16":
        assert not torch.equal(trainer, reference)


@pytest.mark.parametrize("quantization", ["qfloat8", "qint8"])
def test_live_on_quantised_weights(engine, checkpoint, stack, quantization):
    options = RuntimeOptions(transformer_quantization=quantization)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    path, strength, scale = stack[0]
    down, up = _pair(path)
    expected = _run_layer(engine, base, "trainer preview", x) + strength * scale * (x @ down.T @ up.T)
    # auto is live here, although the recipe merges on plain weights
    ours = _run_layer(engine, base.with_lora(_spec(path, strength)), "trainer preview", x)
    assert torch.allclose(ours, expected, atol=1e-5)
    with pytest.raises(LoraError, match=r"'first.safetensors' cannot be merged: the transformer is quantised"):
        wanted(engine, base.with_lora(_spec(path, 1.0, "merged")), "trainer preview")


@pytest.mark.parametrize("application", ["merged", "live"])
def test_taking_loras_off_gives_the_weights_back_to_the_bit(engine, checkpoint, stack, application):
    base = PipelineHandle("lumina2", checkpoint)
    before = _weights(engine, base)
    handle = base
    for path, strength, _ in stack:
        handle = handle.with_lora(_spec(path, strength, application))
    _weights(engine, handle)
    after = _weights(engine, base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_zero_pair_and_a_zero_strength_touch_nothing(engine, checkpoint, tmp_path):
    path = make_lora(tmp_path / "zero.safetensors", checkpoint.source("transformer").folder)
    tensors = {k: v * 0 if "lora_B" in k and "layers.0" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path)
    base = PipelineHandle("lumina2", checkpoint)
    before = _weights(engine, base)
    after = _weights(engine, base.with_lora(_spec(path)))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert "layers.0.attn.to_q.weight" in same
    assert "layers.1.attn.to_q.weight" not in same
    unchanged = _weights(engine, base.with_lora(_spec(path, 0.0)))
    assert all(torch.equal(before[name], unchanged[name]) for name in before)


@pytest.mark.parametrize("recipe", ["reference pipeline", "trainer preview"])
@pytest.mark.parametrize("application", ["merged", "live"])
def test_strength_and_seed_changes_load_and_encode_nothing(engine, checkpoint, models, recipe, application):
    base = PipelineHandle("lumina2", checkpoint, "float32")
    path = models / "loras" / "tiny.safetensors"
    sizes = {"width": 64, "height": 64, "steps": 1}

    def run(strength: float, seed: int = 1):
        handle = base.with_lora(_spec(path, strength, application))
        return sample(engine, handle, SampleRequest(recipe, "a cat", seed=seed, **sizes), SilentObserver())

    first = run(1.0)
    assert first.report["work"]["parts_loaded"] == 3
    assert first.report["work"]["texts_encoded"] == 2
    other = run(-0.5)
    again = run(-0.5, seed=2)
    back = run(1.0)
    for result in (other, again, back):
        assert result.report["work"]["parts_loaded"] == 0
        assert result.report["work"]["texts_encoded"] == 0
        assert result.report["work"]["lora_files_read"] == 0
    assert again.report["work"]["tensors_restored"] == 0
    assert not torch.equal(first.images, other.images)
    assert torch.equal(first.images, back.images)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "base_model.model.transformer.", ""])
@pytest.mark.parametrize(
    "names", [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")], ids=lambda n: n[0]
)
def test_the_same_pair_under_other_names_is_the_same_lora(engine, checkpoint, models, tmp_path, prefix, names):
    original = models / "loras" / "tiny.safetensors"
    renamed = {
        prefix + key.removeprefix("transformer.").replace("lora_A", names[0]).replace("lora_B", names[1]): value
        for key, value in load_file(original).items()
    }
    path = tmp_path / "renamed.safetensors"
    save_file(renamed, path)
    base = PipelineHandle("lumina2", checkpoint)
    for application in ("merged", "live"):
        x = torch.randn(1, 3, 96, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
        ours = _run_layer(engine, base.with_lora(_spec(path, 0.5, application)), "trainer preview", x)
        assert torch.equal(
            ours, _run_layer(engine, base.with_lora(_spec(original, 0.5, application)), "trainer preview", x)
        )


def _file(path, roles: dict[str, torch.Tensor]):
    save_file({f"transformer.{LAYER}.{role}": value for role, value in roles.items()}, path)
    return path


RANDOM = torch.Generator().manual_seed(3)
W1, W2 = torch.randn(12, 8, generator=RANDOM) / 4, torch.randn(8, 12, generator=RANDOM) / 4
W2_A, W2_B = torch.randn(8, 2, generator=RANDOM) / 4, torch.randn(2, 12, generator=RANDOM)
FULL = torch.randn(96, 96, generator=RANDOM) / 8
OTHER_KINDS = {
    # AI Toolkit's mark for a whole LoKr: inf in float16
    "LoKr whole": ({"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(torch.inf)}, torch.kron(W1, W2)),
    "LoKr decomposed": (
        {"lokr_w1": W1, "lokr_w2_a": W2_A, "lokr_w2_b": W2_B, "alpha": torch.tensor(0.5)},
        torch.kron(W1, W2_A @ W2_B) * 0.25,
    ),
    "LoKr both decomposed": (
        {"lokr_w1_a": W1[:, :3], "lokr_w1_b": W1[:3], "lokr_w2": W2, "alpha": torch.tensor(3.0)},
        torch.kron(W1[:, :3] @ W1[:3], W2),
    ),
    "full rank": ({"lora_A.weight": FULL}, FULL),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_merge_and_run_live_as_their_delta_by_hand(engine, checkpoint, tmp_path, name):
    tensors, delta = OTHER_KINDS[name]
    path = _file(tmp_path / "x.safetensors", {role: value.contiguous() for role, value in tensors.items()})
    base = PipelineHandle("lumina2", checkpoint, "float32")
    weight = _weights(engine, base)[f"{LAYER}.weight"]
    merged = _weights(engine, base.with_lora(_spec(path, -0.7)))[f"{LAYER}.weight"]
    assert torch.allclose(merged, weight - 0.7 * delta, atol=1e-6)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    expected = _run_layer(engine, base, "trainer preview", x) - 0.7 * (x @ delta.T)
    for recipe in MODEL.recipes:
        live = _run_layer(engine, base.with_lora(_spec(path, -0.7, "live")), recipe, x)
        assert torch.allclose(live, expected, atol=1e-5)
    back = _weights(engine, base)[f"{LAYER}.weight"]
    assert torch.equal(back, weight)


@pytest.mark.parametrize("quantization", ["none", "qfloat8"])
def test_dora_rescales_the_rows_of_the_changed_weight(engine, checkpoint, tmp_path, quantization):
    down, up = torch.randn(2, 96, generator=RANDOM), torch.randn(96, 2, generator=RANDOM) / 8
    magnitude = torch.rand(96, generator=RANDOM) + 0.5
    path = _file(tmp_path / "dora.safetensors", {"lora_A.weight": down, "lora_B.weight": up, "magnitude": magnitude})
    file = open_lora(path, path.name, MODEL, checkpoint)
    assert not file.mergeable
    options = RuntimeOptions(transformer_quantization=quantization)
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    spec = LoraSpec(path.name, FileStamp.of(path), 0.6, "auto", file.title, file.mergeable)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    with engine.on_device(wanted(engine, base), "transformer", SilentObserver()) as transformer:
        weight = transformer.get_submodule(LAYER).weight
        weight = weight.dequantize() if quantization != "none" else weight.clone()
    changed = weight + 0.6 * up @ down
    # attn.to_q has no bias: the whole output is the row-normalised weight's
    expected = x @ (changed * (magnitude / changed.norm(dim=1))[:, None]).T
    assert torch.allclose(_run_layer(engine, base.with_lora(spec), "trainer preview", x), expected, atol=1e-4)
    if quantization == "none":
        with pytest.raises(LoraError, match=r"cannot be merged: it is a DoRA file, which its trainer never merges"):
            wanted(engine, base.with_lora(replace(spec, application="merged")), "trainer preview")


@pytest.mark.parametrize("shape", [(7,), (1, 5), (3000, 100), (100, 37, 3, 3), (5, 300_000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_merge_in_pieces_has_the_bits_of_one_in_whole(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    change = torch.randn(shape, generator=generator)
    expected = change.clone().mul_(0.7).mul_(0.3).add_(weight)
    # rounded once, also into the weight itself
    own = weight.clone()
    assert merged(own, change.clone(), (1.0, 0.7, 0.3), own) is own
    assert torch.equal(own, expected.to(weight.dtype))
    assert torch.equal(merged(weight, change.clone(), (1.0, 0.7, 0.3)), expected)
    # a convolution's change comes as a matrix
    assert torch.equal(merged(weight, change.flatten(1) if len(shape) > 2 else change, (1.0, 0.7, 0.3)), expected)


@pytest.mark.parametrize("shape", [(4096, 600), (5, 300_000), (700, 64, 3, 3)], ids=str)
@pytest.mark.parametrize("rank", [1, 16, 200])
@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_a_merge_by_rows_is_that_of_whole_matrices(kind, rank, shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(torch.bfloat16)
    wide = weight[0].numel()
    ups, downs = (
        [torch.randn(size, generator=generator) for _ in range(2)] for size in ((len(weight), rank), (rank, wide))
    )
    if kind == "LoRA":
        adapter, change = LowRank(downs[0], ups[0], 0.5 * rank), ups[0] @ downs[0] * 0.3 * 0.5
    else:
        adapter = LoHa(ups[0], downs[0], ups[1], downs[1], 0.5)
        change = (ups[1] @ downs[1]) * (ups[0] @ downs[0]) * 0.5 * 0.3
    # AI Toolkit's and LyCORIS' whole matrices
    expected = (weight + change.reshape(shape)).to(torch.bfloat16)
    out = torch.empty_like(weight)
    assert adapter.merge(weight, 0.3, Workspace("cpu"), out=out) is out
    # on x86 to the bit; elsewhere a library may add up the last rows in another order, and few values round otherwise
    assert torch.allclose(out.float(), expected.float(), rtol=2**-7, atol=0)
    assert (out != expected).float().mean() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("strength", [0.3, -1.7, 1.0, 1e-3])
def test_a_live_strength_on_a_cpu_has_the_bits_of_one_elsewhere(dtype, strength, monkeypatch):
    value = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    factor = torch.tensor(strength, dtype=torch.float32)
    here = times(value.clone(), factor)
    # as where it is compiled, or on a GPU
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(here, times(value.clone(), factor))
    assert torch.equal(here, value * factor.item())


@pytest.mark.parametrize("values", [[], [0.0, -0.0], [0.0, 1e-30], [-1.0, 0.0], [math.nan, 0.0], [math.inf]], ids=str)
def test_a_factor_has_values_where_any_is_not_zero(values):
    assert has_values(torch.tensor(values)) == bool(torch.tensor(values).any())
