"""A random walk over an engine: whatever was run, broken off or damaged before, the next picture is a fresh engine's.

Every family, its weights dense, quantised or packed by their file, whole or streamed in blocks. Seeded. By default a
few seconds; ``AITK_WALK_SECONDS=600`` walks longer, ``AITK_WALK_SEED=7`` elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import containers, flux2, lumina2, omnigen2, z_image
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.files.mapping import MAPS
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.machine.plan import DeviceMemory
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import PLACEMENTS, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.single_file import open_single_file
from comfyui_aitk.pipelines.weights.source import packed_as
from rendering import AskedMachine, loaded

SECONDS = float(os.environ.get("AITK_WALK_SECONDS", "6"))
SEED = int(os.environ.get("AITK_WALK_SEED", "0"))
MAKERS: dict[str, tuple[Callable[..., Path], Callable[..., Path]]] = {
    "lumina2": (lumina2.make_checkpoint, lumina2.make_lora),
    "omnigen2": (omnigen2.make_checkpoint, omnigen2.make_lora),
    "zimage": (z_image.make_checkpoint, z_image.make_lora),
    "flux2": (flux2.make_checkpoint, flux2.make_lora),
    "flux2_klein_4b": (partial(flux2.make_checkpoint, model="flux2_klein_4b"), flux2.make_lora),
}
HELD = ("none", "none", "qfloat8", "qint8", "fp8_e4m3fn", "uint4", "qint2")
REQUEST = SampleRequest("trainer preview", "a cat", width=64, height=64, steps=1, guidance_scale=4.0, seed=1)


class Stop(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class Fault(SilentObserver):
    """Raises at the n-th check, or does something to the files there."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._left = at
        self._act = act

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


class Walk:
    """A machine with models and LoRAs, an engine on it, and the way that it has gone."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        # "cpu:0" takes every path of a device that is not the CPU; the last has no room, so that blocks are streamed
        machines = PlainMachine(), AskedMachine("cpu:0"), AskedMachine("cpu:0", DeviceMemory(0, 0))
        self.machine = self.random.choice(machines)
        self.engine = Engine(self.machine)
        self.way: list[str] = [f"on {self.machine.device()}"]
        self._pictures: dict[tuple, torch.Tensor] = {}
        for model, (make_checkpoint, make_lora) in MAKERS.items():
            made = make_checkpoint(folder / model)
            for number in (1, 2):
                make_lora(folder / f"{model}{number}.safetensors", made, seed=number)
        q8 = z_image.write_gguf(folder / "q8.gguf", folder / "zimage", "Q8_0")
        plain = folder / "flux2_klein_4b" / flux2.FILES["flux2_klein_4b"]
        self.packed = {
            "zimage": q8,
            "lumina2": containers.write_gguf(folder / "lumina2.gguf", folder / "lumina2", "Q8_0"),
            "flux2_klein_4b": containers.write_scaled_float8(folder / "scaled.safetensors", plain, "new"),
        }

    def handle(self) -> PipelineHandle:
        """Any model with any LoRAs, held anyhow."""
        model = self.random.choice(list(MAKERS))
        files = find_model(model).files
        checkpoint = Checkpoint.open(self.folder / model, model, files)
        if (packed := self.packed.get(model)) and self.random.random() < 0.3:
            parts = {source.component: source for source in checkpoint.sources}
            checkpoint = Checkpoint.assemble(model, parts | open_single_file(packed, packed.name, files), files)
        held = {name: bool(packed_as(checkpoint.source(name))) for name in files.parts}
        options = RuntimeOptions(
            "none" if held[files.main] else self.random.choice(HELD),
            self.random.choice(HELD),
            blocks_on_cpu=self.random.choice((0, 0, 1, 999)),
            placement=self.random.choice(PLACEMENTS),
        )
        handle = PipelineHandle(model, checkpoint, self.random.choice(("bfloat16", "float32")), options)
        for number in self.random.sample((1, 2), self.random.randint(0, 2)):
            path = self.folder / f"{model}{number}.safetensors"
            file = open_lora(path, path.name, find_model(model), checkpoint)
            mode = self.random.choice(("auto", "live"))
            strength = self.random.choice((0.0, 0.8, -1.5))
            handle = handle.with_lora(LoraSpec(path.name, FileStamp.of(path), strength, mode, parts=file.parts))
        return handle

    def step(self) -> None:
        handle = self.handle()
        step = self.random.choice((self.run, self.run, self.interrupt, self.fail, self.replace, self.damage, self.free))
        self.way.append(f"{step.__name__} {handle!r} {handle.options}")
        # ComfyUI runs its nodes in inference mode, a library or another thread does not
        with torch.inference_mode(self.random.choice((True, False))):
            step(handle)

    def run(self, handle: PipelineHandle) -> None:
        self.check(handle)

    def interrupt(self, handle: PipelineHandle) -> None:
        def stop() -> None:
            raise Stop

        self._broken(handle, stop, Stop)

    def fail(self, handle: PipelineHandle) -> None:
        errors = (MemoryError("no memory"), OSError(5, "Input/output error"), RuntimeError("out of memory"))
        error = self.random.choice(errors)

        def fault() -> None:
            raise error

        self._broken(handle, fault, BaseException)

    def replace(self, handle: PipelineHandle) -> None:
        """The model's LoRA is trained again while a run goes on."""
        path = self.folder / f"{handle.model}1.safetensors"
        seed = self.random.randint(3, 99)

        def other() -> None:
            new = MAKERS[handle.model][1](self.folder / "new.safetensors", self.folder / handle.model, seed=seed)
            new.replace(path)

        self._broken(handle, other, AITKError)

    def damage(self, handle: PipelineHandle) -> None:
        """A weight file is cut off while a run goes on, and put back."""
        files = [stamp.path for stamp in handle.checkpoint.files if stamp.path.suffix == ".safetensors"]
        path = self.random.choice(sorted(files))
        kept = self.folder / "kept"
        shutil.copy2(path, kept)

        def cut() -> None:
            # another file under the name, as a download makes it: what was read stays as it was
            short = self.folder / "short"
            short.write_bytes(path.read_bytes()[:-64])
            short.replace(path)

        self._broken(handle, cut, AITKError)
        kept.replace(path)

    def free(self, handle: PipelineHandle) -> None:
        del handle
        self.engine.release()
        assert self.engine.resident == frozenset()

    def _broken(self, handle: PipelineHandle, act: Callable[[], None], error: type[BaseException]) -> None:
        try:
            sample(self.engine, handle, REQUEST, Fault(self.random.randint(1, 60), act))
        except error as found:
            self.way.append(f"  {type(found).__name__}")

    def check(self, handle: PipelineHandle) -> None:
        """The picture is a fresh engine's, and without LoRAs every weight a fresh load's."""
        known = (handle, REQUEST)
        if known not in self._pictures:
            self._pictures[known] = sample(Engine(PlainMachine()), handle, REQUEST, SilentObserver()).images
        found = sample(self.engine, handle, REQUEST, SilentObserver())
        assert torch.equal(found.images, self._pictures[known]), "\n".join(self.way)
        self.check_weights(handle)

    def check_weights(self, handle: PipelineHandle) -> None:
        bare = PipelineHandle(handle.model, handle.checkpoint, handle.dtype, handle.options)
        fresh = Engine(PlainMachine())
        for engine in (self.engine, fresh):
            sample(engine, bare, REQUEST, SilentObserver())
        # an engine whose texts are known has not loaded its encoder again
        for name in self.engine.resident & fresh.resident:
            assert _digest(self.engine, name) == _digest(fresh, name), "\n".join([*self.way, name])


# the packed tensors of optimum-quanto cannot be looked at in inference mode
@torch.inference_mode(False)
def _digest(engine: Engine, part: str) -> str:
    """Of every byte of a part's weights, in whatever form."""
    module, digest = loaded(engine, part), hashlib.sha256()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        # no weights: set anew before each text
        if "inv_freq" in name:
            continue
        flatten = getattr(value, "__tensor_flatten__", None)
        for tensor in [value] if flatten is None else [getattr(value, inner) for inner in flatten()[0]]:
            digest.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("seed", "maps"), [(SEED, True), (SEED + 1, False)], ids=["mapped", "read"])
def test_no_way_leads_to_another_picture_or_changed_weights(tmp_path, monkeypatch, seed, maps):
    monkeypatch.setattr(MAPS, "allowed", maps)
    walk = Walk(tmp_path, seed)
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end or len(walk.way) < 3:
        walk.step()
    # whatever happened: every model renders
    walk.check(walk.handle())
