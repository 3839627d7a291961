"""The two that are compared: the pack's engine, and diffusers' pipeline as its users call it. They answer alike."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...pipelines.engine.engine import Engine
from ...pipelines.files.header import FileStamp
from ...pipelines.handle import LoraSpec, PipelineHandle
from ...pipelines.machine.machine import PlainMachine
from ...pipelines.machine.plan import DeviceMemory
from ...pipelines.models import find_model
from ...pipelines.observer import SilentObserver
from ...pipelines.options import Chosen, RuntimeOptions
from ...pipelines.run.request import SampleRequest
from ...pipelines.run.sample import sample
from ...pipelines.weights.checkpoint import Checkpoint
from .measure import Stopwatch, touched
from .subject import LIKE_DIFFUSERS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .subject import Setting

REFERENCE = "reference pipeline"  # the recipe of what diffusers renders


@dataclass(frozen=True)
class Loras:
    """What is to be on the model.

    Attributes:
        numbers: of the setting's files.
        strength: of each.
        merged: whether they are merged into the weights; else they run beside them.
    """

    numbers: Sequence[int] = ()
    strength: float = 1.0
    merged: bool = False


class Side(Protocol):
    """One of the two."""

    watch: Stopwatch

    def load(self) -> None:
        """Reads all parts: after it every weight is in memory."""

    def set_loras(self, loras: Loras) -> None:
        """Brings the loaded model from the LoRAs that it has to others."""

    def picture(self, seed: int, prompt: str, steps: int = 0) -> torch.Tensor:
        """uint8 [H, W, 3] with the LoRAs that were set last; ``steps`` where these are not the setting's."""
        ...

    def denoiser(self) -> nn.Module: ...

    def release(self) -> None:
        """Gives everything up."""

    def counters(self) -> dict[str, int]:
        """What was done so far."""
        ...


class Ours:
    """The engine, as the nodes use it, by one of the model's recipes."""

    def __init__(self, setting: Setting, recipe: str = REFERENCE) -> None:
        self.watch = Stopwatch(setting.device)
        self._setting = setting
        self._model = find_model(setting.model)
        self._recipe = recipe
        self._engine = Engine(PlainMachine(setting.device, _memory(setting.device)))
        self._loras: tuple[LoraSpec, ...] = ()
        self._observer = _Watched(self.watch)

    def load(self) -> None:
        with self._engine.turn(self._observer):
            wanted = self._wanted()
            for part in wanted.keys:
                with self._engine.on_device(wanted, part, self._observer) as module:
                    touched(module)

    def set_loras(self, loras: Loras) -> None:
        application = "merged" if loras.merged else "live"
        files = [self._setting.lora_files[number] for number in loras.numbers]
        self._loras = tuple(LoraSpec(f.name, FileStamp.of(f), loras.strength, application) for f in files)
        with self._engine.turn(self._observer):
            self._engine.apply_loras(self._wanted(), self._model.files.main, self._observer)

    def picture(self, seed: int, prompt: str, steps: int = 0) -> torch.Tensor:
        import torch

        one = self._setting
        request = SampleRequest(
            self._recipe, prompt, width=one.size, height=one.size, steps=steps or one.steps,
            guidance_scale=one.guidance, seed=seed,
        )  # fmt: skip
        with self.watch.on(self.denoiser()):
            images = sample(self._engine, self._handle(), request, self._observer).images
        return (images[0] * 255).round().to(torch.uint8)

    def denoiser(self) -> nn.Module:
        # as the sampler takes it: what is there comes from nowhere
        with self._engine.on_device(self._wanted(), self._model.files.main, self._observer) as module:
            return module

    def release(self) -> None:
        self._loras = ()
        self._engine.release()

    def counters(self) -> dict[str, int]:
        return asdict(self._engine.counters)

    def _handle(self) -> PipelineHandle:
        checkpoint = Checkpoint.open(self._setting.checkpoint, "model", self._model.files)
        options = RuntimeOptions(own=Chosen.of(LIKE_DIFFUSERS[self._setting.model]))
        return PipelineHandle(self._setting.model, checkpoint, "bfloat16", options, self._loras)

    def _wanted(self) -> Any:
        return self._engine.resolve(self._handle(), self._model.recipes[self._recipe])


class Diffusers:
    """``from_pretrained``, ``load_lora_weights``, ``set_adapters``, ``fuse_lora``, and the call."""

    def __init__(self, setting: Setting) -> None:
        self.watch = Stopwatch(setting.device)
        self._setting = setting
        self._pipe: Any = None
        self._loras = Loras()

    def load(self) -> None:
        import torch
        from diffusers import DiffusionPipeline

        with _quiet():
            pipe: Any = DiffusionPipeline.from_pretrained(self._setting.checkpoint, dtype=torch.bfloat16)
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe.to(self._setting.device)
        # it maps its files: what it did not read yet, it reads in its first picture
        for part in self._pipe.components.values():
            if isinstance(part, torch.nn.Module):
                touched(part)

    def set_loras(self, loras: Loras) -> None:
        pipe, before = self._pipe, self._loras
        with _quiet():
            if before.merged and before.numbers:
                pipe.unfuse_lora()
            if gone := [_adapter(number) for number in before.numbers if number not in loras.numbers]:
                pipe.delete_adapters(gone)
            for number in loras.numbers:
                if number not in before.numbers:
                    pipe.load_lora_weights(self._setting.lora_files[number], adapter_name=_adapter(number))
            if loras.numbers:
                names = [_adapter(number) for number in loras.numbers]
                pipe.set_adapters(names, [loras.strength] * len(names))
            if loras.merged and loras.numbers:
                pipe.fuse_lora()
        self._loras = loras

    def picture(self, seed: int, prompt: str, steps: int = 0) -> torch.Tensor:
        import numpy as np
        import torch

        one = self._setting
        with self.watch.on(self.denoiser()), _quiet():
            image = self._pipe(
                prompt,
                width=one.size,
                height=one.size,
                num_inference_steps=steps or one.steps,
                guidance_scale=one.guidance,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=self._step,
            ).images[0]
        return torch.from_numpy(np.array(image))

    def denoiser(self) -> nn.Module:
        return self._pipe.transformer

    def release(self) -> None:
        self._pipe, self._loras = None, Loras()
        self.watch.calls.clear()
        gc.collect()
        empty_cache(self._setting.device)

    def counters(self) -> dict[str, int]:
        return {}

    def _step(self, pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        self.watch.step()
        return values


class _Watched(SilentObserver):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        self._watch.step()


SIDES: dict[str, Callable[[Setting], Side]] = {"ours": Ours, "diffusers": Diffusers}


def empty_cache(device: str) -> None:
    """Has torch give back what it keeps of a GPU's memory for its next tensors."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _memory(device: str) -> DeviceMemory | None:
    import torch

    if not device.startswith("cuda"):
        return None
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total, free)


def _adapter(number: int) -> str:
    return f"lora{number}"


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
