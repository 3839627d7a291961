"""What saves memory or uses another kernel: the same picture where nothing is rounded, near it elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import lumina2
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import Lease, LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.machine.plan import DeviceMemory, usable_ram
from comfyui_aitk.pipelines.models import catalogue, find_model
from comfyui_aitk.pipelines.models.lumina2 import attention
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import AskedMachine, wanted

REQUEST = SampleRequest("sd-scripts", "a cat", width=64, height=64, steps=2, guidance_scale=3.5)
MODEL = find_model("lumina2")


class Elsewhere(Engine):
    """An engine whose compute device is not the home of the weights, as far as this machine can tell them apart.

    Args:
        device: the bytes that are free there; None is a device of which nothing is known.
        ram: the bytes of the computer's memory.
    """

    def __init__(self, device: int | None = None, ram: int = 1 << 40) -> None:
        machine = AskedMachine("cpu:0", None if device is None else DeviceMemory(device, device), ram)
        super().__init__(machine)
        self.asked = machine.asked


INPUTS = {
    "hidden_states": torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0)),
    "timestep": torch.tensor([0.3]),
    "encoder_hidden_states": torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(1)),
    "encoder_attention_mask": (torch.arange(20) < 9).long()[None],
}


def _inputs(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: v.to(dtype) if k.endswith("hidden_states") else v for k, v in INPUTS.items()}


@pytest.fixture
def handle(checkpoint, models) -> PipelineHandle:
    path = models / "loras" / "tiny.safetensors"
    return PipelineHandle("lumina2", checkpoint).with_lora(LoraSpec(path.name, FileStamp.of(path), 0.8, "live"))


@pytest.mark.parametrize("quantization", ["none", "qint8", "fp8_e4m3fn"])
def test_blocks_kept_off_the_device_change_nothing(handle, quantization):
    options = RuntimeOptions(quantization)
    whole, split = Elsewhere(), Elsewhere()
    expected = sample(whole, replace(handle, options=options), REQUEST, SilentObserver())
    for blocks in (1, 2, 99):
        apart = replace(handle, options=replace(options, blocks_on_cpu=blocks))
        result = sample(split, apart, REQUEST, SilentObserver())
        assert torch.equal(result.images, expected.images)
    # encoder, transformer and decoder of the first run; then transformer and decoder
    assert whole.asked[1] > split.asked[1] > split.asked[3], "less room is taken"
    assert split.counters.parts_loaded == 3, "another number of blocks loads nothing again"


def test_a_streamed_block_is_on_the_device_in_its_turn_and_home_after_an_error(checkpoint):
    engine = Elsewhere()
    handle = PipelineHandle("lumina2", checkpoint, options=RuntimeOptions(blocks_on_cpu=1))
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        last, home = transformer.layers[-1], transformer.layers[-1].norm2.weight
        seen = []
        # behind the placement's own hook
        hook = last.register_forward_pre_hook(lambda module, _: seen.append(module.norm2.weight))
        transformer(**_inputs(torch.bfloat16))
        assert last.norm2.weight is home, "gone after its turn"
        assert seen[0] is not home
        hook.remove()

        def fail(*_: object) -> None:
            raise RuntimeError("in its turn")

        hook = last.attn.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in its turn"):
            transformer(**_inputs(torch.bfloat16))
        hook.remove()
    assert last.norm2.weight is home
    assert not last._forward_pre_hooks


class Resident(SilentObserver):
    """Notes which parts are in memory while the picture is made."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seen: set[frozenset[str]] = set()

    def step(self, done, total, x0) -> None:
        self.seen.add(self.engine.resident)


def _ram_for(weights: int) -> int:
    """The smallest memory that the weights of so many bytes fit into."""
    return next(total for total in range((weights + (4 << 30)) * 20 // 19 - 2, 1 << 40) if usable_ram(total) >= weights)


def test_a_small_device_gets_the_blocks_of_both_parts_one_by_one_and_gives_the_same_bits(handle):
    whole, small = Elsewhere(), Elsewhere(0)
    expected, result = (sample(engine, handle, REQUEST, SilentObserver()) for engine in (whole, small))
    assert torch.equal(result.images, expected.images)
    assert torch.equal(result.latent, expected.latent)
    assert all(less < all_at_once for less, all_at_once in zip(small.asked[:2], whole.asked[:2], strict=True))
    assert small.asked[2] == whole.asked[2], "the decoder has no blocks"
    memory = result.report["memory"]
    streamed = {name: part["blocks_streamed"] for name, part in memory["parts"].items()}
    assert streamed == {"transformer": [2, 2], "text_encoder": [3, 3], "vae": [0, 0]}
    assert memory["device"] == {"total": 0.0, "usable": 0.0}
    assert memory["parts"]["transformer"]["quantization_by"] == "options"
    assert [note for note in result.notes if "it may run out of memory" in note] == list(result.notes)
    assert expected.report["memory"]["reasons"] == []
    # no more is asked for than was planned, where live LoRAs are counted by their files' sizes
    plan = wanted(small, handle, REQUEST.recipe, result.size).plan
    for asked, part in zip(small.asked, ("text_encoder", "transformer", "vae"), strict=True):
        assert plan.part(part).beside < asked <= plan.part(part).device


def test_parts_that_do_not_fit_into_memory_together_take_turns(handle):
    large = Elsewhere()
    expected = sample(large, handle, REQUEST, SilentObserver())
    plan = wanted(large, replace(handle, loras=()), REQUEST.recipe, expected.size).plan
    together = sum(part.weights for part in plan.parts)
    # the LoRA is counted by its file's size
    small = Elsewhere(ram=_ram_for(together) - 2)
    with small.on_device(wanted(small, handle), "text_encoder", SilentObserver()) as module:
        encoder = weakref.ref(module.model.layers[0].mlp.up_proj)
    del module
    observer = Resident(small)
    first = sample(small, handle, REQUEST, observer)
    assert observer.seen == {frozenset({"transformer"})}
    assert encoder() is None, "its memory was given back"
    assert torch.equal(first.images, expected.images)
    assert first.report["memory"]["text_encoder_and_transformer"] == "take turns in memory"
    again = sample(small, handle, replace(REQUEST, seed=7), observer)
    assert again.report["work"] == dict.fromkeys(again.report["work"], 0)
    assert len(small.asked) == 1 + 3 + 2, "the second run puts the transformer and the decoder there, no encoder"
    other = sample(small, handle, replace(REQUEST, prompt="a dog"), observer)
    assert other.report["work"]["parts_loaded"] == 2, "the encoder, and then the transformer in its place"
    assert observer.seen == {frozenset({"transformer"}), frozenset({"transformer", "vae"})}
    assert torch.equal(sample(small, handle, REQUEST, SilentObserver()).images, expected.images)
    observer = Resident(large)
    sample(large, handle, REQUEST, observer)
    assert observer.seen == {frozenset({"transformer", "text_encoder", "vae"})}, "where they fit, they stay"


def test_a_part_that_memory_cannot_hold_is_quantised_if_its_model_says_so(checkpoint, monkeypatch):
    facts = replace(MODEL, low_memory_quantization={"transformer": "qfloat8"})
    handle = PipelineHandle("lumina2", checkpoint)
    weights = wanted(Elsewhere(), handle).plan.part("transformer").weights
    enough, less = Elsewhere(ram=_ram_for(weights)), Elsewhere(ram=_ram_for(weights) - 2)
    quantised = replace(handle, options=RuntimeOptions("qfloat8"))
    expected = sample(Elsewhere(), quantised, REQUEST, SilentObserver()).images
    unsaid = sample(less, handle, REQUEST, SilentObserver()).report["memory"]["parts"]["transformer"]
    assert (unsaid["quantization"], unsaid["quantization_by"]) == ("none", "options"), "this model says nothing of it"
    monkeypatch.setitem(catalogue(), "lumina2", facts)
    result = sample(less, handle, REQUEST, SilentObserver())
    assert torch.equal(result.images, expected)
    assert any(note.endswith("qfloat8, 0.0 GB. This changes the picture") for note in result.notes)
    assert result.report["model"]["quantization"]["transformer"] == "qfloat8"
    assert result.report["memory"]["parts"]["transformer"]["quantization_by"] == "plan"
    again = sample(less, handle, REQUEST, SilentObserver())
    assert again.report["work"]["parts_loaded"] == 0, "the same in every run"
    assert torch.equal(again.images, expected)
    for engine, asked in ((enough, handle), (less, replace(handle, options=RuntimeOptions("none")))):
        plain = sample(engine, asked, REQUEST, SilentObserver())
        assert plain.report["model"]["quantization"]["transformer"] == "none"
        assert not torch.equal(plain.images, expected)


@pytest.mark.parametrize(("part", "limit"), [("transformer", 0.05), ("text_encoder", 0.05)])
def test_float8_storage_is_near_and_takes_half_the_memory(engine, checkpoint, part, limit):
    def weights(quantization):
        options = RuntimeOptions(**{f"{part}_quantization": quantization})
        handle = PipelineHandle("lumina2", checkpoint, "float32", options, lease=lease)
        with engine.on_device(wanted(engine, handle), part, SilentObserver()) as module:
            return engine.model(handle).parts[part].lora_root(module)

    # holds both
    lease = Lease()
    plain, stored = weights("none"), weights("fp8_e4m3fn")
    name = "layers.1.attn.to_q" if part == "transformer" else "layers.0.self_attn.q_proj"
    layer = stored.get_submodule(name)
    assert layer.raw.dtype == torch.float8_e4m3fn
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
    exact, near = plain.get_submodule(name)(x), layer(x)
    assert (near - exact).norm() / exact.norm() < limit
    # norms, embedders and their neighbours are as they were
    assert all(value.dtype == torch.float32 for value in stored.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_kernel_is_really_called_with_the_same_operations_around_it(engine, checkpoint, dtype, monkeypatch):
    """diffusers' own ``native`` kernel stands in for those of packages that need a GPU."""
    calls = []
    dispatch = attention.dispatch_attention_fn

    def dispatch_and_note(*arguments, **named):
        calls.append(named["backend"])
        return dispatch(*arguments, **named)

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch_and_note)
    handle = PipelineHandle("lumina2", checkpoint, {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype])
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        expected = transformer(**_inputs(dtype)).sample
        assert not calls
        with attention.kernel(transformer, "native"):
            assert torch.equal(transformer(**_inputs(dtype)).sample, expected)
        assert calls == ["native"] * (len(transformer.layers) + len(transformer.noise_refiner))
        count = len(calls)
        transformer(**_inputs(dtype))
        assert len(calls) == count, "put back"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            RuntimeOptions(transformer_attention="flash"),
            "needs the package flash-attn 2.6.3 or newer, which is not installed",
        ),
        (
            RuntimeOptions(transformer_attention="sage"),
            "needs the package sageattention 2.1.1 or newer, which is not installed",
        ),
    ],
)
def test_a_kernel_that_is_not_there_is_refused_before_anything_is_loaded(engine, checkpoint, options, message):
    with pytest.raises(InputError, match=message):
        sample(engine, PipelineHandle("lumina2", checkpoint, options=options), REQUEST, SilentObserver())
    assert engine.counters.parts_loaded == 0


def test_a_kernel_that_is_too_old_or_has_no_device_is_refused(engine, checkpoint, monkeypatch):
    from comfyui_aitk.pipelines.layers import attention as kernels

    handle = PipelineHandle("lumina2", checkpoint, options=RuntimeOptions(transformer_attention="flash"))
    refused = {"2.5.9.post1": r"flash-attn 2\.6\.3 or newer; installed is 2\.5\.9", "2.8.3": "runs on CUDA"}
    for installed, message in refused.items():
        monkeypatch.setattr(kernels, "version", lambda package, installed=installed: installed)
        with pytest.raises(InputError, match=message):
            sample(engine, handle, REQUEST, SilentObserver())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is counted otherwise elsewhere")
def test_a_merge_and_a_release_leave_no_memory_behind(tmp_path):
    lumina2.make_checkpoint(tmp_path / "tiny")
    made = lumina2.make_checkpoint(tmp_path / "model", sizes=lumina2.Sizes(hidden=576, heads=6, layers=10))
    lumina2.make_lora(tmp_path / "lora.safetensors", made)
    worker = Path(__file__).with_name("memory_worker.py")
    done = subprocess.run([sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout.splitlines()[-1])
    # beside the weights: the LoRA's tensors, and pages that no allocator gives back
    assert kept["loaded"] < 1.1, kept
    assert kept["merged"] < kept["loaded"] + 0.2, kept
    assert kept["released"] < 0.05, kept
