"""What the engine keeps, and that nothing that goes wrong leaves it unusable or its weights changed."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import AITKError, DeviceMemoryError, FileError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.files.mapping import MAPS
from comfyui_aitk.pipelines.handle import Lease, LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.layers.fill import build_empty
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.lumina2 import loop
from comfyui_aitk.pipelines.models.lumina2.model import Lumina2
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.parts.language_model.gemma2 import Gemma2
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import AskedMachine, loaded, wanted
from safetensors.torch import load_file, save_file

REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=2, batch_size=2)


class Stop(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class StopAt(SilentObserver):
    """Interrupts at the n-th check."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.reached_end = False

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


class Recorder(SilentObserver):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, tuple[int, ...]]] = []

    def step(self, done, total, x0) -> None:
        self.steps.append((done, total, tuple(x0.shape)))


@pytest.fixture
def handle(checkpoint, models) -> PipelineHandle:
    path = models / "loras" / "tiny.safetensors"
    return PipelineHandle("lumina2", checkpoint).with_lora(LoraSpec(path.name, FileStamp.of(path), 0.8))


def _transformer_state(engine, handle) -> dict[str, torch.Tensor]:
    with engine.on_device(wanted(engine, handle), "transformer", SilentObserver()) as transformer:
        return {name: value.clone() for name, value in transformer.state_dict().items()}


def test_interrupting_at_every_check_leaves_the_engine_usable(engine, handle):
    expected = sample(engine, handle, REQUEST, SilentObserver())
    base = replace(handle, loras=())
    sample(engine, base, REQUEST, SilentObserver())
    pristine = _transformer_state(engine, base)
    interrupted = 0
    while True:
        # a text that was not encoded yet, and LoRAs that are not on: every phase has work to do
        request = replace(REQUEST, prompt=f"a cat {interrupted}")
        try:
            sample(engine, handle, request, StopAt(interrupted + 1))
        except Stop:
            interrupted += 1
            sample(engine, base, replace(REQUEST, batch_size=1, steps=1), SilentObserver())
            state = _transformer_state(engine, base)
            assert all(torch.equal(state[name], pristine[name]) for name in pristine), interrupted
        else:
            break
    # encode, merge of each layer, two calls per step, decode: far more than the steps alone
    assert interrupted > 40
    assert torch.equal(sample(engine, handle, REQUEST, SilentObserver()).images, expected.images)


def test_interrupting_a_load_is_made_good_by_the_next_run(engine, handle):
    with pytest.raises(Stop):
        sample(engine, handle, REQUEST, StopAt(20))
    assert sample(engine, handle, REQUEST, SilentObserver()).images.shape == (2, 64, 64, 3)


def test_steps_are_reported_over_the_whole_batch(engine, handle):
    recorder = Recorder()
    sample(engine, handle, REQUEST, recorder)
    assert recorder.steps == [(done, 4, (1, 16, 8, 8)) for done in (1, 2, 3, 4)]


def test_a_batch_item_equals_its_single_run(engine, handle):
    batch = sample(engine, handle, replace(REQUEST, seed=5, batch_size=3), SilentObserver())
    for index in range(3):
        single = sample(engine, handle, replace(REQUEST, seed=5 + index, batch_size=1), SilentObserver())
        assert torch.equal(batch.images[index], single.images[0])
        assert torch.equal(batch.latent[index], single.latent[0])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"options": RuntimeOptions(text_encoder_quantization="qfloat8")},
        {"options": RuntimeOptions(text_encoder_quantization="qint8")},
        {"options": RuntimeOptions(own=Chosen.of({"text_encoder_attention": "softcap"}))},
        {"options": RuntimeOptions(transformer_quantization="qint8")},
    ],
    ids=str,
)
def test_every_option_counts_and_leads_back(engine, checkpoint, change):
    handle = PipelineHandle("lumina2", checkpoint)
    request = replace(REQUEST, batch_size=1)
    plain = sample(engine, handle, request, SilentObserver())
    other = sample(engine, replace(handle, **change), request, SilentObserver())
    assert not torch.equal(plain.latent, other.latent)
    back = sample(engine, handle, request, SilentObserver())
    assert torch.equal(plain.latent, back.latent)
    assert back.report["work"]["texts_encoded"] == 0, "the embeddings of the first run are still known"


def test_a_text_is_encoded_once_per_way_of_encoding_it(engine, checkpoint):
    handle = PipelineHandle("lumina2", checkpoint)

    def encoded(handle: PipelineHandle = handle, **change: object) -> int:
        request = replace(REQUEST, batch_size=1, **change)
        return sample(engine, handle, request, SilentObserver()).report["work"]["texts_encoded"]

    assert encoded() == 2
    assert encoded(seed=9, steps=1, width=96) == 0
    assert encoded(prompt="a dog") == 1
    assert encoded(system_prompt="Draw.") == 2
    # bfloat16: the recipes round Gemma2's rotary frequencies differently
    assert encoded(recipe="reference pipeline") == 2
    assert encoded(replace(handle, options=RuntimeOptions(own=Chosen.of({"text_encoder_attention": "softcap"})))) == 2
    assert encoded() == 0


def test_a_damaged_checkpoint_leaves_the_loaded_one(engine, checkpoint, tmp_path):
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint

    good = PipelineHandle("lumina2", checkpoint)
    request = replace(REQUEST, batch_size=1)
    expected = sample(engine, good, request, SilentObserver())
    folder = make_checkpoint(tmp_path / "bad", seed=3)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    bad = PipelineHandle("lumina2", Checkpoint.open(folder, "bad", find_model("lumina2").files))
    with pytest.raises(FileError, match=r"'diffusion_pytorch_model.safetensors' is cut off"):
        sample(engine, bad, request, SilentObserver())
    again = sample(engine, good, request, SilentObserver())
    assert again.report["work"]["parts_loaded"] == 0
    assert torch.equal(again.images, expected.images)


def test_a_lora_that_fails_half_way_is_taken_off_whole(engine, checkpoint, models, tmp_path):
    base = PipelineHandle("lumina2", checkpoint)
    request = replace(REQUEST, batch_size=1)
    expected = sample(engine, base, request, SilentObserver())
    path = tmp_path / "nan.safetensors"
    tensors = load_file(models / "loras" / "tiny.safetensors")
    tensors["transformer.layers.1.norm1.linear.lora_B.weight"][3, 1] = float("nan")
    save_file(tensors, path)
    good = models / "loras" / "tiny.safetensors"
    handle = base.with_lora(LoraSpec(good.name, FileStamp.of(good), 1.0)).with_lora(
        LoraSpec(path.name, FileStamp.of(path), 1.0)
    )
    with pytest.raises(AITKError, match=r"'nan.safetensors' holds NaN or Inf in 'transformer.layers.1.norm1"):
        sample(engine, handle, request, SilentObserver())
    again = sample(engine, base, request, SilentObserver())
    assert torch.equal(again.images, expected.images)
    assert again.report["work"] == dict.fromkeys(again.report["work"], 0)


def test_running_out_of_memory_is_said_clearly(engine, handle, monkeypatch):
    # torch's own error, and Python's
    for too_large in (lambda *_: torch.empty(2**60), lambda *_: bytearray(2**60)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "predict", too_large)
            with pytest.raises(DeviceMemoryError, match=r"The CPU ran out of memory\. Render a smaller size"):
                sample(engine, handle, REQUEST, SilentObserver())
    assert sample(engine, handle, REQUEST, SilentObserver()).report["work"]["parts_loaded"] == 1, "the VAE alone"


def test_a_text_encoder_saved_as_a_causal_model_is_the_same(engine, checkpoint, tmp_path):
    """``Gemma2ForCausalLM`` checkpoints have a prefix and a head that is not needed."""
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint

    folder = make_checkpoint(tmp_path / "causal")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"model.{name}": value for name, value in load_file(path).items()}
    save_file(tensors | {"lm_head.weight": torch.zeros(2, 2)}, path)
    causal = Checkpoint.open(folder, "causal", find_model("lumina2").files)
    images = [
        sample(engine, PipelineHandle("lumina2", source), replace(REQUEST, batch_size=1), SilentObserver()).images
        for source in (checkpoint, causal)
    ]
    assert torch.equal(*images)


def test_a_restore_that_fails_is_made_up_for_by_the_next_run(engine, models, tmp_path):
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint

    folder = make_checkpoint(tmp_path / "moving")
    base = PipelineHandle("lumina2", Checkpoint.open(folder, "moving", find_model("lumina2").files))
    path = models / "loras" / "tiny.safetensors"
    merged = base.with_lora(LoraSpec(path.name, FileStamp.of(path), 1.0))
    request = replace(REQUEST, batch_size=1)
    expected = sample(engine, base, request, SilentObserver()).images
    sample(engine, merged, request, SilentObserver())
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(FileError, match="'moving' has no safetensors weights in transformer"):
            sample(engine, base, request, SilentObserver())
    (tmp_path / "away").rename(weights)
    assert torch.equal(sample(engine, base, request, SilentObserver()).images, expected)


class ElsewhereRecorder(Engine):
    """``cpu:0`` takes every path of a device that is not the CPU: room is asked for, and parts move."""

    def __init__(self) -> None:
        machine = AskedMachine("cpu:0")
        super().__init__(machine)
        self.asked = machine.asked


# on quantised weights "auto" is live
@pytest.mark.parametrize(
    ("quantization", "application"), [("none", "auto"), ("none", "live"), ("qfloat8", "auto"), ("qint8", "auto")]
)
def test_parts_visit_the_device_one_by_one_and_give_the_same_picture(
    engine, checkpoint, models, quantization, application
):
    request = replace(REQUEST, batch_size=1)
    path = models / "loras" / "tiny.safetensors"
    options = RuntimeOptions(quantization, quantization)
    handle = PipelineHandle("lumina2", checkpoint, "bfloat16", options).with_lora(
        LoraSpec(path.name, FileStamp.of(path), 0.8, application)
    )
    expected = sample(engine, handle, request, SilentObserver()).images
    elsewhere = ElsewhereRecorder()
    first = sample(elsewhere, handle, request, SilentObserver())
    # text encoder (once for both texts), transformer, VAE with room for the decoder of a 64 x 64 picture in bfloat16
    assert len(elsewhere.asked) == 3
    assert elsewhere.asked[2] > 2178 * 64 * 8 * 8 * 2
    again = sample(elsewhere, handle, request, SilentObserver())
    assert len(elsewhere.asked) == 5, "the second run needs no text encoder"
    assert torch.equal(first.images, expected)
    assert torch.equal(again.images, expected)


def test_running_out_of_memory_on_the_device_asks_everything_else_to_leave(handle, monkeypatch):
    engine = ElsewhereRecorder()
    monkeypatch.setattr(loop, "predict", lambda *_: torch.empty(2**60))
    with pytest.raises(DeviceMemoryError):
        sample(engine, handle, REQUEST, SilentObserver())
    assert max(engine.asked) > 2**60


def test_memory_that_ran_out_is_tried_for_once_more_with_everything_else_gone(handle, monkeypatch):
    expected = sample(Engine(PlainMachine()), handle, REQUEST, SilentObserver()).images
    other = replace(handle, dtype="float32", lease=Lease())
    engine = ElsewhereRecorder()
    sample(engine, other, REQUEST, SilentObserver())
    predict, calls = loop.predict, []

    def once(*arguments):
        calls.append(1)
        return torch.empty(2**60) if len(calls) == 2 else predict(*arguments)

    monkeypatch.setattr(loop, "predict", once)
    found = sample(engine, handle, REQUEST, SilentObserver())
    assert torch.equal(found.images, expected)
    assert {key.dtype for key in engine._parts} == {handle.dtype}


@pytest.mark.parametrize("call", range(2))
@pytest.mark.parametrize(
    ("owner", "name", "calls"), [(Gemma2, "encode", 2), (loop, "predict", 4), (Lumina2, "decode", 2)]
)
def test_a_run_that_ran_out_of_memory_goes_on_from_where_it_was(handle, monkeypatch, owner, name, calls, call):
    """Two texts, two pictures of two steps: only the picture that was cut off is denoised anew."""
    request = replace(REQUEST, guidance_scale=4.0)
    expected = sample(Engine(PlainMachine()), handle, request, SilentObserver())
    right, done, failed = getattr(owner, name), [], []

    def once(*arguments):
        if len(done) == call * calls // 2 and not failed:
            failed.append(1)
            return torch.empty(2**60)
        done.append(1)
        return right(*arguments)

    monkeypatch.setattr(owner, name, once)
    found = sample(ElsewhereRecorder(), handle, request, SilentObserver())
    assert failed
    assert len(done) == calls
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.latent, expected.latent)
    work = {name: expected.report["work"][name] for name in ("parts_loaded", "texts_encoded", "bytes_read")}
    assert work.items() <= found.report["work"].items()
    assert work["bytes_read"] > 0
    note = "memory ran out: what this run does not need was sent away, and the run went on from there"
    assert [*found.notes] == [note, *expected.notes]


def test_weights_that_were_replaced_after_the_loader_ran_are_refused(engine, tmp_path):
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint

    folder = make_checkpoint(tmp_path / "one")
    handle = PipelineHandle("lumina2", Checkpoint.open(folder, "one", find_model("lumina2").files))
    other = make_checkpoint(tmp_path / "two", seed=9)
    (other / "vae" / "diffusion_pytorch_model.safetensors").replace(
        folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(
        FileError, match=r"vae/diffusion_pytorch_model.safetensors of 'one' was replaced after its node"
    ):
        sample(engine, handle, REQUEST, SilentObserver())


class Wait(SilentObserver):
    """Stops the run that it watches at its first step, until told to go on."""

    def __init__(self) -> None:
        self.there, self.go_on = threading.Event(), threading.Event()

    def step(self, done, total, x0) -> None:
        self.there.set()
        assert self.go_on.wait(60)


def _in_thread(call) -> tuple[threading.Thread, list]:
    found: list = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_runs_of_many_threads_take_turns_and_give_their_own_pictures(engine, checkpoint, handle):
    base = PipelineHandle("lumina2", checkpoint)
    handles = [base, handle, replace(handle, loras=(replace(handle.loras[0], strength=-2.0, application="live"),))]
    requests = [replace(REQUEST, batch_size=1, seed=seed) for seed in (1, 2)]
    jobs = [(handle, request) for handle in handles for request in requests]
    expected = [sample(Engine(engine._machine), *job, SilentObserver()).images for job in jobs]
    threads = [_in_thread(lambda job=job: sample(engine, *job, SilentObserver())) for job in jobs * 2]
    for (thread, found), right in zip(threads, expected * 2, strict=True):
        thread.join()
        assert torch.equal(found[0].images, right)
        # no work of another run is counted in this one's report
        assert found[0].report["work"]["parts_loaded"] in (0, 3)


def test_a_waiting_run_is_cancelled_alone(engine, handle):
    first, second = Wait(), StopAt(3)
    one, done = _in_thread(lambda: sample(engine, handle, REQUEST, first))
    assert first.there.wait(60)
    other, stopped = _in_thread(lambda: sample(engine, handle, REQUEST, second))
    other.join(60)
    assert [type(value) for value in stopped] == [Stop], "it did not wait for the other's end"
    assert one.is_alive()
    first.go_on.set()
    one.join()
    assert done[0].images.shape[0] == 2


def test_what_is_given_back_is_gone_and_comes_again(engine, handle):
    expected = sample(engine, handle, REQUEST, SilentObserver())
    weights = [weakref.ref(loaded(engine, key.part)) for key in engine._parts]
    assert engine.resident
    engine.release()
    assert engine.resident == frozenset()
    assert [ref() for ref in weights] == [None] * 3
    again = sample(engine, handle, REQUEST, SilentObserver())
    assert torch.equal(again.images, expected.images)
    assert torch.equal(again.latent, expected.latent)
    assert again.report["work"]["parts_loaded"] == 3
    assert again.report["work"]["texts_encoded"] == 2


def test_giving_back_waits_for_the_run_that_goes_on(engine, handle):
    expected = sample(engine, handle, REQUEST, SilentObserver()).images
    watched = Wait()
    run, done = _in_thread(lambda: sample(engine, handle, REQUEST, watched))
    assert watched.there.wait(60)
    giving, _ = _in_thread(engine.release)
    giving.join(0.3)
    assert giving.is_alive()
    assert engine.resident
    watched.go_on.set()
    run.join()
    giving.join()
    assert engine.resident == frozenset()
    assert torch.equal(done[0].images, expected)


def test_a_merge_and_its_undoing_leave_every_tensor_where_it_is(checkpoint, handle, monkeypatch):
    """A new tensor for each merged layer leaves holes in the process' memory that no other one fits into.

    Where there is room for originals they are kept, and those that lie in a file take none: here there is no room, and
    files are read.
    """
    monkeypatch.setattr(MAPS, "allowed", False)
    engine = Engine(PlainMachine(total=0))
    base, request = PipelineHandle("lumina2", checkpoint), replace(REQUEST, batch_size=1, steps=1)
    sample(engine, base, request, SilentObserver())
    module = loaded(engine, "transformer")
    pristine = {name: (value.data_ptr(), value.clone()) for name, value in module.state_dict().items()}
    for wanted_now in (handle, replace(handle, loras=(replace(handle.loras[0], strength=-1.0),)), base):
        sample(engine, wanted_now, request, SilentObserver())
        state = module.state_dict()
        assert {name: value.data_ptr() for name, value in state.items()} == {n: p for n, (p, _) in pristine.items()}
        assert all(torch.equal(state[n], value) for n, (_, value) in pristine.items()) is (wanted_now is base)


def test_a_tensor_that_another_name_shares_is_not_written_to(engine, checkpoint, handle):
    request = replace(REQUEST, batch_size=1, steps=1)
    sample(engine, PipelineHandle("lumina2", checkpoint), request, SilentObserver())
    module = loaded(engine, "transformer")
    first, second = (module.get_submodule(f"layers.{n}.attn.to_q") for n in (0, 1))
    before = first.weight.clone()
    # as tied weights are: one tensor under two names
    second.weight = first.weight
    expected = sample(Engine(engine._machine), handle, request, SilentObserver())
    assert expected.images.shape[0] == 1
    sample(engine, handle, request, SilentObserver())
    assert not torch.equal(first.weight, second.weight)
    sample(engine, PipelineHandle("lumina2", checkpoint), request, SilentObserver())
    assert torch.equal(first.weight, before)


def test_threads_that_make_models_at_once_leave_torch_as_it_was():
    """accelerate patches torch's modules for all threads, and puts back what it found."""
    first, second = threading.Event(), threading.Event()

    def slow() -> torch.nn.Module:
        first.set()
        # the other one, if it may come in
        second.wait(0.5)
        return torch.nn.Linear(2, 2)

    def late() -> torch.nn.Module:
        second.set()
        time.sleep(0.2)
        return torch.nn.Linear(2, 2)

    one, made = _in_thread(lambda: build_empty(slow, "one"))
    assert first.wait(10)
    two, others = _in_thread(lambda: build_empty(late, "two"))
    one.join(10)
    two.join(10)
    assert [model.weight.device.type for model in (*made, *others)] == ["meta", "meta"]
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("model", ["lumina2", "flux2", "flux2_klein_4b", "omnigen2", "zimage"])
def test_what_is_loaded_in_comfyui_s_inference_mode_is_used_in_any(tiny, model):
    """ComfyUI runs every node in it: nothing that is made on the way to a load may be an inference tensor."""
    handle = PipelineHandle(model, tiny(model).checkpoint, "float32")
    expected = sample(Engine(PlainMachine()), handle, REQUEST, SilentObserver()).images
    engine = Engine(PlainMachine())
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            found = sample(engine, handle, REQUEST, SilentObserver())
        assert torch.equal(found.images, expected)
