"""AITK Recovery Adapter: layers of few bits under an adapter that stays on, on a tiny Z-Image and a tiny klein.

The arithmetic is compared with AI Toolkit's in ``tests/live``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, lumina2, z_image
from comfyui_aitk.headless.tiny.containers import write_scaled_float8
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.layers import uintx
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.machine.plan import DeviceMemory
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RECOVERY_TYPES
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import AskedMachine, loaded, put_into_cache, wanted
from safetensors.torch import load_file, save_file

REQUEST = SampleRequest("trainer preview", "a fox", width=64, height=64, steps=2)
ONLY = ("layers.0.attention.to_q", "layers.1.attention.to_out.0", "layers.0.feed_forward.w2")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A models folder. Read only."""
    folder = tmp_path_factory.mktemp("models")
    tiny = z_image.make_checkpoint(folder / "diffusers" / "tiny")
    for kind in ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras"):
        (folder / kind).mkdir()
    transformer, encoder, vae = z_image.write_single_files(folder, tiny)
    write_scaled_float8(folder / "diffusion_models" / "float8.safetensors", transformer, "new")
    encoder.rename(folder / "text_encoders" / encoder.name)
    vae.rename(folder / "vae" / vae.name)
    loras = folder / "loras"
    # w2 of this model has rows of 341 values, which are no whole groups of 64
    z_image.make_lora(loras / "ara.safetensors", tiny, only=ONLY, seed=3)
    z_image.make_lora(loras / "lora.safetensors", tiny)
    z_image.make_lokr(loras / "lokr.safetensors", tiny)
    z_image.make_lokr(loras / "lycoris.safetensors", tiny, factor=4, old_format=True, only=("layers_0", "layers.0"))
    z_image.make_lokr(loras / "ranked.safetensors", tiny, rank=2, old_format=True)
    own = load_file(loras / "ara.safetensors")
    fused = {key.replace("to_q", "qkv").replace("to_out.0", "out"): value for key, value in own.items()}
    save_file(
        {key: torch.cat([value] * 3) if "qkv.lora_B" in key else value for key, value in fused.items()},
        loras / "fused.safetensors",
    )
    rest = z_image.make_lora(folder / "rest.safetensors", tiny, only=("layers.1.attention.to_q",), rank=2)
    save_file(own | load_file(rest), loras / "two_ranks.safetensors")
    save_file({key.replace("layers.0", "layers.9"): value for key, value in own.items()}, loras / "deep.safetensors")
    save_file({"diffusion_model.layers.0.attention.to_q.diff": torch.ones(128, 128)}, loras / "diff.safetensors")
    klein = flux2.make_checkpoint(folder / "diffusers" / "klein", "flux2_klein_4b")
    flux2.make_lora(loras / "klein.safetensors", klein)
    lumina2.make_checkpoint(folder / "diffusers" / "lumina")
    return folder


@pytest.fixture
def nodes(host, files, hub_cache):
    """``nodes(name, inputs, ..., weights=..., ...)``: the handle behind a loader and nodes in a row."""
    use_host(PlainHost(files, host.input, host.output, "cpu"))
    of_klein, own = (files / "diffusers" / name / "tokenizer" for name in ("klein", "tiny"))
    put_into_cache(hub_cache, "Qwen/Qwen3-4B", {file.name: file for file in of_klein.iterdir()})
    put_into_cache(hub_cache, "Tongyi-MAI/Z-Image-Turbo", {f"tokenizer/{file.name}": file for file in own.iterdir()})

    def behind(*row: tuple[str, dict], options: dict | None = None, **load) -> PipelineHandle:
        made = None
        if options is not None:
            inputs = {"transformer_quantization": "model default", "text_encoder_quantization": "none"} | options
            (made,) = NODE_CLASS_MAPPINGS["AITKRuntimeOptions"]().make(**inputs, text_encoder_attention="auto")
        load = {"model": "zimage:turbo", "weights": "tiny", "dtype": "bfloat16", "options": made} | load
        (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(**load)
        for name, inputs in row:
            cls = NODE_CLASS_MAPPINGS[name]
            pipeline = getattr(cls(), cls.FUNCTION)(pipeline=pipeline, **inputs)[0]
        return pipeline

    return behind


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PlainMachine())


def recovery(name: str = "ara", qtype: str = "uint3") -> tuple[str, dict]:
    return "AITKRecoveryAdapter", {"adapter_name": f"{name}.safetensors", "qtype": qtype}


def lora(name: str = "lora", strength: float = 0.7, application: str = "auto") -> tuple[str, dict]:
    inputs = {"lora_name": f"{name}.safetensors", "strength": strength, "application": application}
    return "ApplyAITKLoRA", inputs


def latent(engine: Engine, pipeline: PipelineHandle) -> torch.Tensor:
    return sample(engine, pipeline, REQUEST, SilentObserver()).latent


def transformer_of(engine: Engine, pipeline: PipelineHandle) -> torch.nn.Module:
    """As a run of a handle holds it."""
    latent(engine, pipeline)
    return loaded(engine, "transformer")


def test_the_adapter_s_layers_alone_are_quantised_and_those_of_whole_groups_at_that(nodes, engine):
    pipeline = nodes(recovery())
    assert pipeline.recovery is not None
    assert sorted(pipeline.recovery.layers) == sorted(ONLY)
    module = transformer_of(engine, pipeline)
    held = {name for name, layer in module.named_modules() if isinstance(layer, uintx.UIntXLinear)}
    assert held == set(ONLY[:2])
    # what AI Toolkit's formula makes of the stored weight
    stored = dict(pipeline.checkpoint.source("transformer").read([f"{ONLY[0]}.weight"]))[f"{ONLY[0]}.weight"]
    own = module.get_submodule(ONLY[0])
    assert isinstance(own, uintx.UIntXLinear)
    assert torch.equal(own.weight.dequantize(), uintx.quantize(stored.to(torch.bfloat16), 3).dequantize())
    assert "uint3 under its recovery adapter" in repr(pipeline)


@pytest.mark.parametrize("qtype", RECOVERY_TYPES)
def test_every_type_is_a_picture_of_its_own_and_uint8_leaves_the_weights(nodes, engine, qtype):
    if qtype in ("float8", "int8"):
        pytest.importorskip("torchao")
    report = sample(engine, nodes(recovery(qtype=qtype)), REQUEST, SilentObserver()).report
    plain = latent(engine, nodes())
    found = latent(engine, nodes(recovery(qtype=qtype)))
    assert not torch.equal(found, plain)
    assert report["model"]["recovery_adapter"] == {"name": "ara.safetensors", "qtype": qtype}
    assert report["model"]["quantization"]["transformer"] == ("none" if qtype == "uint8" else qtype)
    (row,) = report["loras"]
    assert (row["strength"], row["application"], row["arithmetic"]) == (1.0, "live", "live, recovery")
    if qtype == "uint8":
        # the adapter by itself, with factors in bfloat16
        spec = replace(nodes(lora("ara", 1.0)).loras[0], application="live", arithmetic="recovery")
        assert torch.equal(found, latent(engine, replace(nodes(), loras=(spec,))))


def test_it_is_below_all_loras_whatever_the_order_of_the_nodes(nodes, engine):
    first, second = nodes(recovery(), lora(), lora("lokr", -0.5)), nodes(lora(), lora("lokr", -0.5), recovery())
    assert first == second
    assert [one.name for one in first.loras] == ["ara.safetensors", "lora.safetensors", "lokr.safetensors"]
    assert torch.equal(latent(engine, first), latent(engine, second))


@pytest.mark.parametrize("qtype", ["uint4", "uint8"])
def test_no_lora_is_merged_under_it_and_a_strength_reloads_nothing(nodes, engine, qtype):
    def with_lora(strength: float) -> PipelineHandle:
        return nodes(recovery(qtype=qtype), lora(strength=strength))

    # as long as it is there, nothing is dropped
    kept = with_lora(0.7)
    report = sample(engine, kept, REQUEST, SilentObserver()).report
    # AI Toolkit merges into no model that it was asked to quantise, though uint8 quantises nothing
    assert [one["application"] for one in report["loras"]] == ["live", "live"]
    loaded, merged = engine.counters.parts_loaded, engine.counters.tensors_merged
    full, half, none = (latent(engine, with_lora(strength)) for strength in (0.7, 0.35, 0.0))
    alone = latent(engine, nodes(recovery(qtype=qtype)))
    assert torch.equal(none, alone)
    assert 0 < (half - alone).norm() < (full - alone).norm()
    assert torch.equal(full, latent(engine, kept))
    assert (engine.counters.parts_loaded, engine.counters.tensors_merged) == (loaded, merged)
    with pytest.raises(AITKError, match=f"cannot be merged: the transformer is quantised .{qtype}."):
        latent(engine, nodes(recovery(qtype=qtype), lora(application="merged")))


def test_a_plain_model_and_back_are_the_same_pictures(nodes, engine):
    plain, recovered = latent(engine, nodes()), latent(engine, nodes(recovery()))
    uint3 = latent(engine, nodes(options={"transformer_quantization": "uint3"}))
    assert len({tuple(one.flatten().tolist()) for one in (plain, recovered, uint3)}) == 3
    assert torch.equal(latent(engine, nodes()), plain)
    engine.release()
    assert torch.equal(latent(engine, nodes(recovery())), recovered)


def test_streamed_blocks_give_the_same_picture(nodes, engine):
    expected = latent(engine, nodes(recovery(), lora()))
    streaming = Engine(AskedMachine("cpu:0", DeviceMemory(0, 0)))
    assert wanted(streaming, nodes(recovery(), lora())).plan.part("transformer").streamed == 2
    for options in ({}, {"placement": "streamed"}, {"placement": "sequential"}):
        assert torch.equal(latent(streaming, nodes(recovery(), lora(), options=options)), expected)


def test_a_lycoris_lokr_is_an_adapter_too(nodes, engine):
    pipeline = nodes(recovery("lycoris"))
    assert pipeline.recovery is not None
    assert all(name.startswith("layers.0.") for name in pipeline.recovery.layers)
    assert not torch.equal(latent(engine, pipeline), latent(engine, nodes()))


def test_klein_has_one_too(nodes, engine):
    load = {"model": "flux2_klein_4b", "weights": "klein"}
    pipeline = nodes(recovery("klein"), **load)
    assert not torch.equal(latent(engine, pipeline), latent(engine, nodes(**load)))


def test_memory_is_planned_with_the_quantised_sizes(nodes, engine):
    # kept: weights of a handle that nobody has any more are let go
    adapted = nodes(recovery())
    plain, few = (wanted(engine, handle).plan.part("transformer") for handle in (nodes(), adapted))
    module = transformer_of(engine, adapted)
    held = sum(value.nbytes for value in module.state_dict().values())
    # branches are counted with twice their file, which may be half as wide as they run
    assert few.weights - 2 * adapted.loras[0].file.size == held < plain.weights
    assert few.quantization == "uint3"
    assert not few.decided_here


@pytest.mark.parametrize(
    ("row", "load", "message"),
    [
        ((recovery("gone"),), {}, "'gone.safetensors'"),
        ((recovery("deep"),), {}, "does not fit these weights of Z-Image Turbo"),
        ((recovery("klein"),), {}, "klein"),
        ((recovery("diff"),), {}, "'diff.safetensors' is .*; a recovery adapter is a LoRA in AI Toolkit's names"),
        ((recovery("fused"),), {}, "is LoRA with shares of layers, or of other parts; a recovery adapter is"),
        ((recovery("ranked"),), {}, "has factors of rank 2; of a LoKr AI Toolkit reads whole ones alone"),
        ((recovery("two_ranks"),), {}, "has layers of rank 2, 4. A recovery adapter has one"),
        ((recovery(), recovery("lycoris")), {}, "has a recovery adapter already, 'ara.safetensors'. Remove one"),
        ((recovery(), ("AITKTrainingAdapter", {"adapter_name": "lora.safetensors"})), {}, "refuses a training adapter"),
        ((("AITKTrainingAdapter", {"adapter_name": "lora.safetensors"}), recovery()), {}, "refuses a recovery adapter"),
        ((recovery(qtype="qfloat8"),), {}, "qtype 'qfloat8' is none that AI Toolkit runs under a recovery adapter"),
        ((recovery(),), {"options": {"transformer_quantization": "uint4"}}, "is uint4, and the recovery adapter 'ara"),
        ((recovery(),), {"options": {"transformer_quantization": "none"}}, "is none, .* Set it to model default"),
        ((recovery(),), {"model": "lumina2", "weights": "lumina"}, "runs Lumina Image 2.0 without a recovery adapter"),
        (
            (recovery(),),
            {"weights": "float8.safetensors", "text_encoder": "qwen_3_4b.safetensors", "vae": "ae.safetensors"},
            "is quantised .scaled float8.*, and a recovery adapter belongs on weights",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(nodes, row, load, message):
    with pytest.raises(AITKError, match=message):
        nodes(*row, **load)


def test_the_same_type_on_the_options_contradicts_nothing(nodes, engine):
    expected = latent(engine, nodes(recovery()))
    assert torch.equal(latent(engine, nodes(recovery(), options={"transformer_quantization": "uint3"})), expected)
    assert nodes(recovery(qtype="uint8"), options={"transformer_quantization": "none"}).recovery.qtype == "uint8"


def test_a_file_that_was_saved_again_is_another_adapter(host, files, tmp_path):
    (tmp_path / "loras").mkdir()
    own = tmp_path / "loras" / "ara.safetensors"
    own.write_bytes((files / "loras" / "ara.safetensors").read_bytes())
    use_host(PlainHost(tmp_path, host.input, host.output, "cpu"))
    node = NODE_CLASS_MAPPINGS["AITKRecoveryAdapter"]
    before = node.IS_CHANGED("ara.safetensors")
    assert node.IS_CHANGED("ara.safetensors") == before
    own.write_bytes((files / "loras" / "lora.safetensors").read_bytes())
    assert node.IS_CHANGED("ara.safetensors") != before
    assert node.VALIDATE_INPUTS("ara.safetensors") is True
    assert "'gone.safetensors'" in node.VALIDATE_INPUTS("gone.safetensors")
    assert node.IS_CHANGED() == ""
    assert json.dumps(node.INPUT_TYPES())
