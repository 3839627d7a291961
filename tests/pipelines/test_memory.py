"""What saves memory or uses another kernel: the same picture where nothing is rounded, near it elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_aitk.pipelines.engine import Engine
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle, RuntimeOptions
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.lumina2 import attention
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.sampling import SampleRequest, sample

REQUEST = SampleRequest("sd-scripts", "a cat", width=64, height=64, steps=2, guidance_scale=3.5)
MODEL = find_model("lumina2")


class Elsewhere(Engine):
    """An engine whose compute device is not the home of the weights, as far as this machine can tell them apart."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        super().__init__(lambda: "cpu:0", self.asked.append)


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
    # encoder, transformer and decoder of the first run; then transformer and decoder. One block is there at a time
    assert whole.asked[1] == split.asked[1] > split.asked[3], "less room is asked for"
    assert split.counters.parts_loaded == 3, "another number of blocks loads nothing again"


def test_a_streamed_block_is_on_the_device_in_its_turn_and_home_after_an_error(checkpoint):
    engine = Elsewhere()
    handle = PipelineHandle("lumina2", checkpoint, options=RuntimeOptions(blocks_on_cpu=1))
    with torch.no_grad(), engine.on_device(handle, "transformer", SilentObserver()) as transformer:
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


@pytest.mark.parametrize(("part", "limit"), [("transformer", 0.05), ("text_encoder", 0.05)])
def test_float8_storage_is_near_and_takes_half_the_memory(engine, checkpoint, part, limit):
    def weights(quantization):
        options = RuntimeOptions(**{f"{part}_quantization": quantization})
        handle = PipelineHandle("lumina2", checkpoint, "float32", options)
        with engine.on_device(handle, part, SilentObserver()) as module:
            return engine.runtime(MODEL).lora_root(module)

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
    with torch.no_grad(), engine.on_device(handle, "transformer", SilentObserver()) as transformer:
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
    from comfyui_aitk.pipelines import attention as kernels

    handle = PipelineHandle("lumina2", checkpoint, options=RuntimeOptions(transformer_attention="flash"))
    refused = {"2.5.9.post1": r"flash-attn 2\.6\.3 or newer; installed is 2\.5\.9", "2.8.3": "runs on CUDA"}
    for installed, message in refused.items():
        monkeypatch.setattr(kernels, "version", lambda package, installed=installed: installed)
        with pytest.raises(InputError, match=message):
            sample(engine, handle, REQUEST, SilentObserver())
