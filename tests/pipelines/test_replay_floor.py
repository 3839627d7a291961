"""How far our own pictures move when the kernels change, and that nothing else is changed by that."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny.containers import write_all_in_one
from comfyui_aitk.pipelines.compare.comparison import Verdict
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.handle import ControlImages, PipelineHandle
from comfyui_aitk.pipelines.machine.child import Child
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SILENT, SilentObserver
from comfyui_aitk.pipelines.replay import elsewhere, floor
from comfyui_aitk.pipelines.replay.cell import Cell, Place
from comfyui_aitk.pipelines.replay.elsewhere import Elsewhere, packed, unpacked
from comfyui_aitk.pipelines.replay.floor import Floors
from comfyui_aitk.pipelines.replay.grid import make_grid
from comfyui_aitk.pipelines.replay.judge import Judged
from comfyui_aitk.pipelines.replay.kernels import other_kernels
from comfyui_aitk.pipelines.replay.replay import replay
from comfyui_aitk.pipelines.replay.selection import select
from comfyui_aitk.pipelines.replay.store import CellStore
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from recorded_jobs import recorded_base, recorded_job

HERE = ("attention in single steps", "without oneDNN")
ELSEWHERE = "the CPU's plainest instructions"


def measured(engine: Engine, name: str, folder: Path, steps: str, *, observer: SilentObserver = SILENT) -> list[Judged]:
    """A recorded job's first sample in bfloat16, with its floor."""
    base = replace(recorded_base(name.split("_")[0]), dtype="bfloat16")
    job = recorded_job(name)
    chosen, store = select(job, steps, "0"), CellStore(folder)
    return list(replay(engine, job, base, chosen, job.folder, store, observer, measure_floor=True))


def only(monkeypatch, *names: str) -> None:
    known = {kernels.name: kernels for kernels in other_kernels("cpu")}
    monkeypatch.setattr(floor, "other_kernels", lambda device: tuple(known[name] for name in names))


def test_another_machine_s_picture_is_within_what_kernels_change(tmp_path):
    """The recording's CPU has other bfloat16 kernels; where it has these, there is nothing to measure."""
    engine = Engine(PlainMachine())
    found = measured(engine, "lumina2_bf16", tmp_path, "0,250")
    for one in found:
        assert one.comparison is not None
        assert one.comparison.verdict in (Verdict.IDENTICAL, Verdict.KERNEL_NOISE), one.comparison.words
    before = replace(engine.counters)
    again = measured(engine, "lumina2_bf16", tmp_path, "0,250")
    assert [one.comparison.floors for one in again] == [one.comparison.floors for one in found]
    assert engine.counters == before, "a floor is kept like a cell"


def test_nothing_is_left_of_other_kernels(tmp_path, monkeypatch):
    """Texts, control images and merged weights are those of the kernels in force, whatever ran between."""
    only(monkeypatch, *HERE)
    # far enough that both kinds of kernels are tried
    monkeypatch.setattr("comfyui_aitk.pipelines.compare.floor.covers", lambda floor, found: False)
    engine = Engine(PlainMachine())
    for name, texts, pictures in (("omnigen2_control", 2, 1), ("lumina2_bf16", 2, 0)):
        before = replace(engine.counters)
        (one,) = measured(engine, name, tmp_path / "first", "250")
        assert [floor.kernels for floor in one.comparison.floors] == list(HERE)
        assert all(floor.difference.differing for floor in one.comparison.floors), "they are other kernels"
        # once for the cell and once for each of the two
        assert engine.counters.texts_encoded - before.texts_encoded == 3 * texts
        assert engine.counters.pictures_encoded - before.pictures_encoded == 3 * pictures
        (again,) = measured(engine, name, tmp_path / "second", "250")
        assert not again.outcome.found
        assert np.array_equal(again.ours(), one.ours())
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cuda.flash_sdp_enabled()


def test_weights_that_other_kernels_merged_are_made_anew(tmp_path, monkeypatch):
    only(monkeypatch, "without oneDNN")
    engine = Engine(PlainMachine())
    job = recorded_job("lumina2_png")
    grid = make_grid(job, recorded_base("lumina2"), select(job, "250", "0"), tmp_path)
    floors = Floors(engine, {cell.place: cell for cell in grid.cells}, CellStore(tmp_path / "cells"), SILENT)
    apply = engine.apply_loras
    # as where a part has to leave before its run: it is merged within
    monkeypatch.setattr(engine, "apply_loras", lambda *given: torch.backends.mkldnn.enabled or apply(*given))
    next(floors.of(Place(250, 0)))
    assert engine.counters.tensors_merged
    assert engine.counters.tensors_restored == engine.counters.tensors_merged


@pytest.fixture
def started(monkeypatch) -> list[Child]:
    """The processes that were started."""
    found: list[Child] = []
    begin = Elsewhere._started
    monkeypatch.setattr(Elsewhere, "_started", lambda self, cell: found.append(begin(self, cell)) or found[-1])
    only(monkeypatch, ELSEWHERE)
    return found


def test_a_process_of_its_own_renders_all_cells(tmp_path, started):
    found = measured(Engine(PlainMachine()), "lumina2_bf16", tmp_path, "250,500")
    differences = [one.comparison.floor.difference for one in found]
    assert all(0 < one.maximum < 20 for one in differences)
    (process,) = started
    assert process._process.poll() is not None, "it has ended"


class _Cancelled(Exception):
    pass


def test_cancel_ends_the_process(tmp_path, started):
    class Cancels(SilentObserver):
        def check(self) -> None:
            if started:
                raise _Cancelled

    with pytest.raises(_Cancelled):
        measured(Engine(PlainMachine()), "lumina2_bf16", tmp_path, "250", observer=Cancels())
    (process,) = started
    assert process._process.poll() is not None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "free_ram",
            lambda: 10**9,
            "A process of its own needs 2.1 GB of memory, and 1.0 GB are free. Close other programs.",
        ),
        ("_CHILD", Path(__file__).with_name("no such file"), "Its process ended before it gave a picture."),
    ],
    ids=["no memory", "no process"],
)
def test_kernels_that_cannot_be_had_are_named(tmp_path, monkeypatch, name, value, message):
    only(monkeypatch, ELSEWHERE)
    monkeypatch.setattr(elsewhere, name, value)
    (one,) = measured(Engine(PlainMachine()), "lumina2_bf16", tmp_path, "250")
    assert one.comparison.verdict is Verdict.SAME_PICTURE
    assert one.comparison.words.endswith(f"was not measured. Not tried: {ELSEWHERE}; {message}")


def test_a_cell_means_the_same_in_another_process(tmp_path, checkpoint):
    """What models state is not sent: it holds functions."""
    facts = find_model("lumina2")
    path = write_all_in_one(tmp_path / "all.safetensors", checkpoint.source("transformer").folder)
    sources = open_single_file(path, "all.safetensors", facts.files)
    for base in (
        recorded_base("omnigen2"),
        PipelineHandle("lumina2", Checkpoint.assemble("all", sources, facts.files)),
    ):
        request = SampleRequest("trainer preview", "a fox", control=ControlImages((torch.rand(1, 8, 8, 3),)))
        cell = Cell(Place(0, 0), base, request)
        found = unpacked(packed(cell))
        assert found.handle == cell.handle
        assert found.handle.checkpoint.sources[0].facts is cell.handle.checkpoint.sources[0].facts
        assert torch.equal(found.request.control.images[0], request.control.images[0])


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "mps"])
def test_torch_has_its_own_kernels_again_whatever_happens(device):
    def state() -> tuple:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return (
            torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
            matmul.allow_bf16_reduced_precision_reduction, matmul.allow_tf32, cudnn.deterministic, cudnn.allow_tf32,
        )  # fmt: skip

    before, others = state(), [kernels for kernels in other_kernels(device) if kernels.here is not None]
    assert len({kernels.name for kernels in others}) == len(others) >= 1
    for kernels in others:
        with suppress(_Cancelled), kernels.here():
            assert state() != before, kernels.name
            raise _Cancelled
        assert state() == before, kernels.name


def test_a_mistake_does_not_pass_as_coarser_arithmetic(monkeypatch):
    """TF32 is never switched on for a floor."""
    assert not any("TF32" in kernels.name for kernels in other_kernels("cuda:0") if "without" not in kernels.name)
    before = torch.backends.cuda.matmul.allow_tf32
    for kernels in other_kernels("cuda:0"):
        with kernels.here():
            assert torch.backends.cuda.matmul.allow_tf32 <= before
