"""Step caching: what it reuses and what it leaves behind, for each model, on the real classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, lumina2, omnigen2, qwen_image, z_image
from comfyui_aitk.headless.tiny.spread import spread
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import ControlImages, LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.layers import compiled
from comfyui_aitk.pipelines.layers.step_cache import StepCache
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.flux2.network import DoubleStreamBlock, Flux2Transformer
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import AskedMachine, loaded, noise_image
from torch import nn

REQUEST = SampleRequest("trainer preview", "a cat", "a dog", width=64, height=64, steps=4, guidance_scale=4.0, seed=1)
EVERY_STEP = RuntimeOptions(step_caching=1e9)  # but the first, which has nothing to reuse


class Stop(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class StopAt(SilentObserver):
    """Interrupts before a step's first call."""

    def __init__(self, step: int) -> None:
        self.step_to_stop_at, self.done = step, 0

    def step(self, done, total, x0) -> None:
        self.done = done

    def check(self) -> None:
        if self.done == self.step_to_stop_at:
            raise Stop


def run(engine: Engine, handle: PipelineHandle, **change: object) -> SampleResult:
    return sample(engine, handle, replace(REQUEST, **change), SilentObserver())


def modules(engine: Engine) -> list[tuple[str, nn.Module, set[str]]]:
    """Everything that hooks could be put on."""
    found = loaded(engine, "transformer").named_modules()
    return [(name, module, set(vars(module))) for name, module in found]


def cached(handle: PipelineHandle, **options: object) -> PipelineHandle:
    return replace(handle, options=replace(EVERY_STEP, **options))


@pytest.fixture
def handle(checkpoint) -> PipelineHandle:
    return PipelineHandle("lumina2", checkpoint)


@pytest.mark.parametrize(
    ("model", "calls", "reused"),
    [
        # calls of 2 blocks for 2 texts, in 4 steps; in 3 of them the second block is left out
        ("lumina2", 16, 6),
        ("omnigen2", 16, 6),
        # both texts in one call
        ("zimage", 8, 3),
        ("qwen_image", 16, 6),
        # one double block, of which nothing can be left out, and two single ones
        ("flux2", 12, 3),
        ("flux2_klein_4b", 24, 6),
    ],
)
def test_steps_are_reused_for_one_run(model, calls, reused, tmp_path):
    makers = {"lumina2": lumina2, "omnigen2": omnigen2, "zimage": z_image, "qwen_image": qwen_image}
    folder = tmp_path / "tiny"
    made = makers[model].make_checkpoint(folder) if model in makers else flux2.make_checkpoint(folder, model)
    handle = PipelineHandle(model, Checkpoint.open(made, "tiny", find_model(model).files))
    engine = Engine(PlainMachine())
    plain = run(engine, handle)
    assert plain.report["step_caching"] is None
    before = modules(engine)
    other = run(engine, cached(handle))
    assert other.report["step_caching"] == {"threshold": 1e9, "block_calls": calls, "reused": reused}
    assert any(f"{reused} of {calls} block calls" in note and "another one" in note for note in other.notes)
    assert not torch.equal(other.images, plain.images)
    assert modules(engine) == before
    assert torch.equal(run(engine, handle).latent, plain.latent)
    # so little that nothing is
    careful = run(engine, cached(handle, step_caching=1e-9))
    assert careful.report["step_caching"]["reused"] == 0
    assert any("nothing is changed" in note for note in careful.notes)
    assert torch.equal(careful.latent, plain.latent)


def test_each_branch_reuses_what_was_its_own(engine, handle):
    """Against the same thing written out: what a text's calls need is kept by the text."""
    threshold, steps = 0.1, 12
    found = run(engine, cached(handle, step_caching=threshold), steps=steps)
    run(engine, handle, steps=steps)
    with written_out(loaded(engine, "transformer"), threshold) as reused:
        expected = run(engine, handle, steps=steps)
    assert found.report["step_caching"]["reused"] == sum(reused.values())
    assert len(reused) == 2
    assert all(0 < count < steps - 1 for count in reused.values()), "some steps are reused, and some are not"
    assert torch.equal(found.latent, expected.latent)


@contextmanager
def written_out(transformer: Any, threshold: float) -> Iterator[dict[int, int]]:
    """The cache for two blocks; yields how often the second was left out, by the text's identity."""
    first, second = transformer.layers
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    reused: dict[int, int] = {}
    text, given = 0, torch.empty(0)

    def note_text(_module, _args, kwargs) -> None:
        nonlocal text
        text = id(kwargs["encoder_hidden_states"])

    def note_tokens(_module, args) -> None:
        nonlocal given
        given = args[0]

    def forward(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        added = tokens - given
        if text in kept:
            before, more = kept[text]
            if (added - before).abs().mean() / before.abs().mean() <= threshold:
                reused[text] = reused.get(text, 0) + 1
                return more + tokens
        result = type(second).forward(second, tokens, *rest)
        kept[text] = added, result - tokens
        return result

    hooks = [
        transformer.register_forward_pre_hook(note_text, with_kwargs=True),
        first.register_forward_pre_hook(note_tokens),
    ]
    second.forward = forward
    try:
        yield reused
    finally:
        del second.forward
        for hook in hooks:
            hook.remove()


def test_a_picture_reuses_nothing_of_the_one_before(engine, handle):
    batch = run(engine, cached(handle), seed=5, batch_size=2)
    for index in range(2):
        single = run(engine, cached(handle), seed=5 + index)
        assert torch.equal(batch.latent[index], single.latent[0])


def test_a_call_without_the_images_is_a_third_branch(engine, tmp_path):
    made = omnigen2.make_checkpoint(tmp_path / "tiny")
    handle = PipelineHandle("omnigen2", Checkpoint.open(made, "tiny", find_model("omnigen2").files))
    options = Chosen.of({"image_guidance_scale": 2.0})
    control = ControlImages((noise_image(64, 64),))
    found = run(engine, cached(handle), recipe="reference pipeline", recipe_options=options, control=control)
    assert found.report["step_caching"] == {"threshold": 1e9, "block_calls": 24, "reused": 9}


@torch.no_grad()
def test_image_and_text_of_double_blocks_are_both_reused():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_heads": 1, "context_in_dim": 16, "in_channels": 16}
    transformer = Flux2Transformer(depth=3, depth_single_blocks=3, guidance_embed=False, **sizes)
    inputs = {
        "x": torch.randn(1, 6, 16), "x_ids": torch.zeros(1, 6, 4, dtype=torch.int64),
        "ctx": torch.randn(1, 5, 16), "ctx_ids": torch.zeros(1, 5, 4, dtype=torch.int64),
    }  # fmt: skip
    early, late = torch.tensor([0.9]), torch.tensor([0.8])
    expected = transformer(timesteps=early, **inputs)
    cache = StepCache(1e9)
    blocks = [*transformer.double_blocks, *transformer.single_blocks]
    with cache.on(
        transformer, blocks, lambda block: "image, text" if isinstance(block, DoubleStreamBlock) else "tokens"
    ):
        found = []
        for time in (early, early, late):
            with cache.branch("prompt"):
                found.append(transformer(timesteps=time, **inputs))
    assert torch.equal(found[0], expected)
    # the same again: what was added last time is what would be added now, but for its rounding
    assert torch.allclose(found[1], expected, atol=1e-5)
    assert not torch.allclose(found[2], transformer(timesteps=late, **inputs), atol=1e-3)
    assert (cache.block_calls, cache.reused) == (18, 8)


@torch.no_grad()
def test_blocks_that_are_called_by_names_and_return_the_text_first():
    torch.manual_seed(0)
    transformer = spread(qwen_image.transformer(num_layers=3)).eval()
    inputs = {
        "hidden_states": torch.randn(1, 6, 64), "encoder_hidden_states": torch.randn(1, 5, 256),
        "img_shapes": [[(1, 2, 3)]], "return_dict": False,
    }  # fmt: skip
    early, late = torch.tensor([0.9]), torch.tensor([0.8])
    (expected,) = transformer(timestep=early, **inputs)
    cache = StepCache(1e9)
    with cache.on(transformer, list(transformer.transformer_blocks), lambda block: "text, image"):
        found = []
        for time in (early, early, late):
            with cache.branch("prompt"):
                found.append(transformer(timestep=time, **inputs)[0])
    assert torch.equal(found[0], expected)
    assert torch.allclose(found[1], expected, atol=1e-5)
    assert not torch.allclose(found[2], transformer(timestep=late, **inputs)[0], atol=1e-3)
    assert (cache.block_calls, cache.reused) == (9, 4)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_an_interrupt_leaves_nothing_behind(engine, handle, step):
    plain = run(engine, handle)
    before = modules(engine)
    with pytest.raises(Stop):
        sample(engine, cached(handle), REQUEST, StopAt(step) if step else StopInFirstBlock(engine))
    assert modules(engine) == before
    assert torch.equal(run(engine, handle).latent, plain.latent)


class StopInFirstBlock(SilentObserver):
    """Fails within the second call of the first block, as where memory runs out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def step(self, done, total, x0) -> None:
        def fail(*_: object) -> None:
            hook.remove()
            raise Stop

        first: Any = loaded(self.engine, "transformer").get_submodule("layers.0")
        hook = first.block.register_forward_pre_hook(fail)


@pytest.mark.parametrize("placement", ["streamed", "sequential"])
@pytest.mark.parametrize(("quantization", "application"), [("none", "merged"), ("none", "live"), ("qint8", "live")])
def test_placement_loras_and_quantisation_go_with_it(handle, models, placement, quantization, application):
    path = models / "loras" / "tiny.safetensors"
    handle = handle.with_lora(LoraSpec(path.name, FileStamp.of(path), 0.8, application))
    expected = run(Engine(PlainMachine()), cached(handle, transformer_quantization=quantization))
    engine = Engine(AskedMachine("cpu:0"))
    options = RuntimeOptions(quantization, placement=placement)
    plain = run(engine, replace(handle, options=options))
    found = run(engine, cached(handle, transformer_quantization=quantization, placement=placement))
    assert torch.equal(found.latent, expected.latent)
    assert found.report["step_caching"]["reused"] == 6
    assert torch.equal(run(engine, replace(handle, options=options)).latent, plain.latent)


def test_a_block_that_is_left_out_does_not_come_to_the_device(handle):
    engine = Engine(AskedMachine("cpu:0"))
    run(engine, handle)

    def moved(handle: PipelineHandle) -> int:
        return run(engine, handle).report["work"]["bytes_moved"]

    block = sum(value.nbytes for value in loaded(engine, "transformer").layers[1].parameters())
    streamed = RuntimeOptions(placement="streamed", blocks_on_cpu=1)
    moved(replace(handle, options=streamed))
    plain = moved(replace(handle, options=streamed))
    assert plain - moved(cached(handle, placement="streamed", blocks_on_cpu=1)) == 6 * block


def test_compiled_blocks_are_reused_too(handle, monkeypatch):
    """Without a compiler behind it, torch.compile computes the same bits."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_BACKEND", "eager")
    found = run(Engine(PlainMachine()), cached(handle, compiled=True))
    assert found.report["step_caching"]["reused"] == 6
    assert torch.equal(found.latent, run(Engine(PlainMachine()), cached(handle)).latent)


class Shared(PlainMachine):
    """Two processes render one picture."""

    def processes(self) -> int:
        return 2


def test_several_processes_are_refused_before_anything_is_loaded(handle):
    engine = Engine(Shared())
    with pytest.raises(InputError, match="step_caching cannot be used with 2 processes"):
        run(engine, cached(handle))
    assert engine.counters.parts_loaded == 0


def test_a_diffusers_without_the_cache_is_refused_before_anything_is_loaded(engine, handle, monkeypatch):
    monkeypatch.delitem(sys.modules, "comfyui_aitk.pipelines.layers.cached_blocks", raising=False)
    monkeypatch.delattr("diffusers.hooks.FirstBlockCacheConfig")
    with pytest.raises(InputError, match=r"step_caching needs diffusers' first-block cache.*FirstBlockCacheConfig"):
        run(engine, cached(handle))
    assert engine.counters.parts_loaded == 0
    assert run(engine, handle).report["step_caching"] is None
