"""Weights that leave while ComfyUI's memory manager goes through the models that it knows."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui_aitk.nodes.host import comfyui
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.handle import Lease, PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.machine.residence import EVERYTHING, Residence
from comfyui_aitk.pipelines.machine.unit import Unit
from comfyui_aitk.pipelines.observer import SILENT
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from rendering import leases_ended
from torch import nn

# "cpu:0" takes every path of a device that is not the CPU
DEVICE = torch.device("cpu", 0)
REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)


class Patcher:
    """What the pack's own answers are put before."""

    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


class Known:
    """An entry of the list: it holds neither the patcher nor the module, and is taken out where the module dies."""

    def __init__(self, patcher: Any, models: list[Known]) -> None:
        self._patcher = weakref.ref(patcher)
        self.module = weakref.ref(patcher.model)
        self.end = weakref.finalize(patcher.model, take_out_dead, models)
        self.end.atexit = False

    @property
    def patcher(self) -> Any:
        return self._patcher()


def take_out_dead(models: list[Known]) -> None:
    for index in reversed([index for index, known in enumerate(models) if known.module() is None]):
        models.pop(index)


class Manager:
    """ComfyUI 0.28's ``model_management`` as far as it matters here: one list, and places in it that are remembered
    while patchers are called (``free_memory``, ``LoadedModel.model_unload``, ``cleanup_models``)."""

    def __init__(self) -> None:
        self.models: list[Known] = []

    def load_models_gpu(self, patchers: list[Any], memory_required: int = 0) -> None:
        for patcher in patchers:
            if all(known.patcher is not patcher for known in self.models):
                self.models.insert(0, Known(patcher, self.models))
            patcher.partially_load(DEVICE, 1e32)

    def free_memory(self, size: float, device: torch.device) -> None:
        found = []
        for place in reversed(range(len(self.models))):
            patcher = self.models[place].patcher
            assert patcher is not None or self.models[place].module() is None, "ComfyUI takes that for a leak"
            found.append((patcher.loaded_size() - patcher.model_size(), patcher.model_size(), place))
        left = []
        for _, _, place in sorted(found):
            known = self.models[place]
            if size < known.patcher.loaded_size() and known.patcher.partially_unload(DEVICE, size) >= size:
                continue
            known.patcher.detach()
            known.end.detach()
            left.append(place)
        for place in sorted(left, reverse=True):
            self.models.pop(place)


class Machine(PlainMachine):
    """The pack's host of ComfyUI on the stand-in."""

    def admit(self, guest: Residence, beside: int) -> None:
        comfyui.ComfyHost().admit(guest, beside)

    def make_room(self, size: float) -> None:
        comfyui.ComfyHost().make_room(size)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager()
    management, patcher, comfy = (ModuleType(f"comfy.{name}") for name in ("model_management", "model_patcher", ""))
    vars(management).update(
        load_models_gpu=made.load_models_gpu,
        free_memory=made.free_memory,
        get_torch_device=lambda: DEVICE,
        unet_offload_device=lambda: torch.device("cpu"),
    )
    vars(patcher).update(ModelPatcher=Patcher)
    vars(comfy).update(model_management=management, model_patcher=patcher)
    for name, module in (("", comfy), (".model_management", management), (".model_patcher", patcher)):
        monkeypatch.setitem(sys.modules, f"comfy{name}", module)
    comfyui._patcher_class.cache_clear()
    yield made
    comfyui._patcher_class.cache_clear()


class Other(Patcher):
    """Another pack's model, the first to be asked to leave: then ``act`` is called."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(nn.Linear(1, 1), DEVICE, DEVICE)
        self.act = act

    def model_size(self) -> int:
        return 1 << 40

    def loaded_size(self) -> int:
        return 0

    def partially_load(self, *_: object) -> None: ...

    def detach(self) -> None:
        self.act()


@pytest.fixture
def engine() -> Engine:
    made = Engine(Machine("cpu:0"))
    made.leases.grace = 0
    return made


@pytest.fixture
def held(checkpoint) -> list[PipelineHandle]:
    return [PipelineHandle("lumina2", checkpoint, lease=Lease())]


def test_a_lease_that_ends_while_comfyui_frees_memory_leaves_the_list_as_it_is(manager, engine, held):
    sample(engine, held[0], REQUEST, SILENT)
    again = replace(held[0], lease=Lease())
    residences = [weakref.ref(known.patcher.residence) for known in manager.models]

    def end() -> None:
        held.clear()
        leases_ended()
        assert engine.resident == set()

    other = Other(end)
    manager.load_models_gpu([other])
    manager.free_memory(1e30, DEVICE)
    assert manager.models == []
    assert [residence().size for residence in residences] == [0] * 3
    sample(engine, again, REQUEST, SILENT)
    assert [residence() for residence in residences] == [None] * 3


def test_what_is_left_of_dropped_parts_goes_before_the_next_run(manager, engine, held):
    other = replace(held[0], dtype="float32", lease=Lease())
    for handle in (other, held[0]):
        expected = sample(engine, handle, REQUEST, SILENT)
    del other, handle
    leases_ended()
    assert sorted(known.patcher.model_size() > 0 for known in manager.models) == [False] * 3 + [True] * 3
    found = sample(engine, held[0], REQUEST, SILENT)
    assert found.report["work"]["parts_loaded"] == 0
    assert torch.equal(found.images, expected.images)
    assert len(manager.models) == 3
    assert all(known.patcher.model_size() > 0 for known in manager.models)


def test_a_part_that_is_dropped_while_it_leaves_the_device_is_gone(manager, engine, held, monkeypatch):
    """It could be given back what it has at home, if it were sent away between the two halves of a drop."""
    sample(engine, held[0], REQUEST, SILENT)
    residence: Residence = manager.models[1].patcher.residence
    half, go_on, tensors, forget = threading.Event(), threading.Event(), Unit._tensors, Unit.forget
    dropping = threading.Thread(target=residence.drop)

    def looking(unit: Unit) -> Iterator[tuple]:
        for found in tensors(unit):
            if dropping.ident is None and sys._getframe(1).f_code.co_name == "leave":
                dropping.start()
                half.wait(0.3)
            yield found

    def forgetting(unit: Unit) -> None:
        if threading.current_thread() is dropping:
            half.set()
            assert go_on.wait(60)
        forget(unit)

    monkeypatch.setattr(Unit, "_tensors", looking)
    monkeypatch.setattr(Unit, "forget", forgetting)
    assert residence.leave(EVERYTHING) > 0
    go_on.set()
    dropping.join()
    assert residence.size == 0
