"""Parts stay on the device until something else needs the room, and the pictures are the same wherever they are."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, lumina2, omnigen2, z_image
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.files.mapping import MAPS
from comfyui_aitk.pipelines.handle import Lease, LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.layers import compiled
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.machine.plan import DeviceMemory, usable_ram
from comfyui_aitk.pipelines.machine.residence import EVERYTHING, Residence
from comfyui_aitk.pipelines.machine.transfer import is_pinned, mapped, tensor_bytes
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from rendering import AskedMachine, leases_ended, loaded, wanted
from safetensors.torch import load_file, save_file
from torch import nn

REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=2, guidance_scale=4.0, seed=1)
PARTS = ("text_encoder", "transformer", "vae")


class Shared(AskedMachine):
    """A device that other programs use, too: :attr:`guests` are the parts that it was given."""

    def __init__(self, memory: DeviceMemory | None = None) -> None:
        super().__init__("cpu:0", memory)
        self.guests: list[Residence] = []

    def admit(self, guest: Residence, beside: int) -> None:
        super().admit(guest, beside)
        self.guests.append(guest)


def run(engine: Engine, handle: PipelineHandle, **change: object) -> SampleResult:
    return sample(engine, handle, replace(REQUEST, **change), SilentObserver())


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def handle(checkpoint) -> PipelineHandle:
    return PipelineHandle("lumina2", checkpoint)


@pytest.fixture
def lora(models) -> LoraSpec:
    path = models / "loras" / "tiny.safetensors"
    return LoraSpec(path.name, FileStamp.of(path), 0.8)


def test_a_second_run_moves_no_weight_and_encodes_no_text(handle):
    machine = Shared()
    engine = Engine(machine)
    first = run(engine, handle).report["work"]
    sizes = {guest.size for guest in machine.guests}
    assert first["bytes_moved"] == sum(sizes), "every part came once"
    again = run(engine, handle, seed=2)
    assert again.report["work"] == dict.fromkeys(first, 0)
    assert torch.equal(again.images, run(Engine(PlainMachine()), handle, seed=2).images)


@pytest.mark.parametrize("quantization", ["none", "qfloat8", "fp8_e4m3fn"])
@pytest.mark.parametrize("mode", ["live", "merged"])
def test_parts_that_were_sent_away_between_runs_come_back_the_same(handle, lora, quantization, mode):
    if quantization != "none" and mode == "merged":
        return
    handle = replace(handle, options=RuntimeOptions(quantization)).with_lora(replace(lora, application=mode))
    machine = Shared()
    engine = Engine(machine)
    expected = run(Engine(PlainMachine()), handle).images
    transformer = None
    for size in (None, 1, 10**5, EVERYTHING):
        if transformer is not None and size is not None:
            there = transformer.there
            assert transformer.leave(size) == there - transformer.there >= min(size, there)
        assert torch.equal(run(engine, handle).images, expected)
        transformer = machine.guests[1]
    assert engine.counters.parts_loaded == 3


def test_a_part_that_a_run_uses_stays(handle):
    machine = Shared()
    engine = Engine(machine)

    freed = []

    class Asks(SilentObserver):
        def step(self, done, total, x0) -> None:
            freed.append(machine.guests[1].leave(EVERYTHING))

    sample(engine, handle, REQUEST, Asks())
    assert freed == [0] * REQUEST.steps
    assert machine.guests[1].leave(EVERYTHING) > 0


@pytest.mark.parametrize("away", [0, 1, EVERYTHING])
def test_loras_change_what_is_on_the_device_and_what_is_at_home(handle, lora, away):
    """Whatever is there when a LoRA is changed: pictures are a fresh engine's, and in the end the weights as well."""
    machine = Shared()
    engine = Engine(machine)
    run(engine, handle)
    transformer = machine.guests[1]
    pristine = weights(transformer.module)
    steps = [
        handle.with_lora(replace(lora, application=mode, strength=strength))
        for mode, strength in (("live", 0.8), ("live", -1.0), ("merged", 0.8), ("merged", 0.3), ("live", 0.8))
    ]
    for step in (*steps, handle):
        transformer.leave(away)
        assert torch.equal(run(engine, step).images, run(Engine(PlainMachine()), step).images)
    there = weights(transformer.module)
    transformer.leave(EVERYTHING)
    at_home = weights(transformer.module)
    for found in (there, at_home):
        assert found.keys() == pristine.keys()
        assert all(torch.equal(found[name], value) for name, value in pristine.items())
    assert engine.counters.parts_loaded == 3


def test_the_least_used_parts_leave_where_the_next_one_needs_their_room(handle):
    probe = Shared()
    expected = run(Engine(probe), handle).images
    # room for any one part with what it needs beside it, and for a little more
    most = int(max(probe.asked))
    free = next(size for size in range(most, 1 << 40, 1 << 18) if DeviceMemory(size, size).usable >= most)
    machine = Shared(DeviceMemory(free, free))
    engine = Engine(machine)
    assert torch.equal(run(engine, handle).images, expected)
    encoder, transformer, decoder = machine.guests
    assert decoder.there == decoder.size
    assert encoder.there < encoder.size, "it gave up what the transformer needed"
    assert encoder.there + transformer.size <= DeviceMemory(free, free).usable - (1 << 30)
    assert torch.equal(run(engine, handle).images, expected)
    assert engine.counters.parts_loaded == 3


def test_weights_are_dropped_when_the_last_handle_is(handle, lora):
    engine = Engine(PlainMachine())
    engine.leases.grace = 0
    leased = replace(handle, lease=Lease())
    changed = leased.with_lora(lora)
    run(engine, changed)
    del leased
    leases_ended()
    assert engine.resident == set(PARTS), "a handle that was made of it holds them"
    del changed
    leases_ended()
    assert engine.resident == set()
    assert torch.equal(run(engine, handle).images, run(Engine(PlainMachine()), handle).images)


def test_a_loader_that_runs_again_finds_its_weights(handle):
    """ComfyUI lets go of a node's output before it runs the node again."""
    engine = Engine(PlainMachine())
    one = replace(handle, lease=Lease())
    run(engine, one)
    del one
    gc.collect()
    assert run(engine, replace(handle, lease=Lease()), seed=3).report["work"]["parts_loaded"] == 0
    engine.leases.grace = 0.01
    gc.collect()
    for _ in range(1000):
        if not engine.resident:
            break
        time.sleep(0.01)
    assert engine.resident == set(), "and after a while they are gone"


def test_a_handle_that_dies_in_a_run_takes_nothing_from_it(handle):
    engine = Engine(PlainMachine())
    engine.leases.grace = 0
    held = [replace(handle, lease=Lease())]
    run(engine, held[0])

    class Drops(SilentObserver):
        def step(self, done, total, x0) -> None:
            held.clear()
            gc.collect()

    other = replace(handle, lease=Lease())
    found = sample(engine, other, REQUEST, Drops())
    leases_ended()
    assert engine.resident == set(PARTS), "the other handle's"
    assert torch.equal(found.images, run(Engine(PlainMachine()), handle).images)


def test_models_of_living_handles_stay_beside_each_other(handle, tmp_path):
    """A graph with two loaders: the second run of each loads nothing."""
    engine = Engine(PlainMachine())
    one, two = (replace(handle, dtype=dtype, lease=Lease()) for dtype in ("bfloat16", "float32"))
    for each in (one, two):
        run(engine, each)
    before = engine.counters.parts_loaded
    for each in (one, two, one):
        run(engine, each, seed=5)
    assert engine.counters.parts_loaded == before == 6


def test_on_the_cpu_a_part_that_is_asked_to_leave_is_dropped(handle):
    class Home(Shared):
        def device(self) -> str:
            return "cpu"

    machine = Home()
    engine = Engine(machine)
    expected = run(engine, handle).images
    for guest in machine.guests:
        guest.leave(EVERYTHING)
    assert engine.resident == set()
    assert torch.equal(run(engine, handle).images, expected)


@pytest.mark.parametrize("maps", [True, False], ids=["mapped", "read"])
def test_originals_that_are_kept_undo_and_change_a_merge_without_a_file(handle, lora, monkeypatch, maps):
    """Where the computer's memory has no room for them, they are read again, and the weights are the same.

    Those that lie in their file take no room.
    """
    monkeypatch.setattr(MAPS, "allowed", maps)
    merged = [handle.with_lora(replace(lora, application="merged", strength=strength)) for strength in (0.8, -0.5, 0.8)]
    plan = wanted(Engine(PlainMachine()), handle).plan
    needed = sum(part.weights for part in plan.parts)
    small = next(size for size in range(4 << 30, 1 << 40, 1 << 10) if usable_ram(size) >= needed)
    roomy, tight = Engine(PlainMachine(total=1 << 40)), Engine(PlainMachine(total=small))
    for engine in (roomy, tight):
        first = run(engine, handle).images
        pristine = weights(loaded(engine, "transformer"))
        for step in merged:
            assert torch.equal(run(engine, step).images, run(Engine(PlainMachine()), step).images)
        assert torch.equal(run(engine, handle).images, first)
        found = weights(loaded(engine, "transformer"))
        assert all(torch.equal(found[name], value) for name, value in pristine.items())
    once = sum(file.size for file in handle.checkpoint.files if file.path.suffix == ".safetensors") + lora.file.size
    assert roomy.counters.bytes_read <= once
    assert (roomy.counters.bytes_read < tight.counters.bytes_read) is not maps
    assert roomy.counters.tensors_merged == tight.counters.tensors_merged


def test_only_what_another_strength_changes_is_merged_again(handle, lora, tmp_path):
    one = replace(lora, application="merged")
    half = tmp_path / "half.safetensors"
    tensors = {name: value for name, value in load_file(lora.file.path).items() if ".layers.0.attn.to_q." in name}
    save_file(tensors, half)
    other = LoraSpec(half.name, FileStamp.of(half), 1.0, "merged")
    engine = Engine(PlainMachine())
    run(engine, handle.with_lora(one).with_lora(other))
    before = engine.counters.tensors_merged
    changed = handle.with_lora(one).with_lora(replace(other, strength=-1.0))
    assert torch.equal(run(engine, changed).images, run(Engine(PlainMachine()), changed).images)
    assert engine.counters.tensors_merged - before == 1


@pytest.mark.parametrize(
    ("options", "streamed", "stays"),
    [
        (RuntimeOptions(), 0, True),
        (RuntimeOptions(placement="resident"), 0, True),
        (RuntimeOptions(placement="streamed"), 2, True),
        (RuntimeOptions(placement="streamed", blocks_on_cpu=1), 1, True),
        (RuntimeOptions(placement="sequential"), 2, False),
    ],
)
def test_every_placement_gives_the_same_picture(handle, lora, options, streamed, stays):
    handle = handle.with_lora(replace(lora, application="live"))
    expected = run(Engine(PlainMachine()), handle).images
    machine = Shared()
    engine = Engine(machine)
    for _ in range(2):
        assert torch.equal(run(engine, replace(handle, options=options)).images, expected)
    assert machine.guests[1].streamed == (streamed if stays else 2)
    assert (machine.guests[1].there > 0) == stays
    assert engine.counters.parts_loaded == 3


def test_resident_is_resident_where_the_plan_would_stream(handle):
    machine = Shared(DeviceMemory(0, 0))
    shares = []

    class Looks(SilentObserver):
        def step(self, done, total, x0) -> None:
            shares.append(machine.guests[1].there / machine.guests[1].size)

    for placement in ("resident", "automatic"):
        shares.clear()
        machine.guests.clear()
        options = RuntimeOptions(placement=placement)
        found = sample(Engine(machine), replace(handle, options=options), REQUEST, Looks())
        assert any("may run out of memory" in note for note in found.notes)
        assert all((value == 1) == (placement == "resident") for value in shares)
        assert len(shares) == REQUEST.steps


@pytest.mark.parametrize(
    ("model", "maker"), [("lumina2", lumina2), ("zimage", z_image), ("flux2", flux2), ("omnigen2", omnigen2)]
)
def test_compiled_blocks_stay_compiled_over_strengths_and_loras(model, maker, tmp_path, monkeypatch):
    """Without a compiler behind it, torch.compile computes the same bits: what it traces is what is tested."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_BACKEND", "eager")
    made = maker.make_checkpoint(tmp_path / "tiny")
    files = [maker.make_lora(tmp_path / f"{seed}.safetensors", made, seed=seed) for seed in (1, 2)]
    checkpoint = Checkpoint.open(made, "tiny", find_model(model).files)
    base = PipelineHandle(model, checkpoint, options=RuntimeOptions(compiled=True))
    one, two = (base.with_lora(LoraSpec(file.name, FileStamp.of(file), 0.8, "live")) for file in files)
    weak = base.with_lora(replace(one.loras[0], strength=-0.3))
    engine = Engine(PlainMachine())
    first = run(engine, one)
    assert any("compile is on" in note for note in first.notes)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (weak, two, one):
            plain = replace(step, options=RuntimeOptions())
            assert torch.equal(run(engine, step).images, run(Engine(PlainMachine()), plain).images)


def test_a_quantised_tensor_is_its_pieces(handle):
    """What goes to a GPU beside the computation is pinned piece by piece; here the pieces are only cloned."""
    engine = Engine(PlainMachine())
    run(engine, replace(handle, options=RuntimeOptions("qint8")))
    weight = loaded(engine, "transformer").layers[0].attn.to_q.weight
    again = mapped(weight, torch.clone)
    assert type(again) is type(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert tensor_bytes([again]) == tensor_bytes([weight]) < weight.numel() * 2
    assert not is_pinned(weight)
