"""Clocks and scales: seconds of a piece of work, memory while it goes on, and a stopwatch in a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch
    from torch import nn

_EVERY = 0.002  # seconds between two looks at the memory
_PROCESS = psutil.Process()


def resident() -> int:
    """Bytes of the computer's memory that this process has."""
    return _PROCESS.memory_info().rss


def on_device(device: str) -> int:
    """Bytes of its own memory that tensors have on the device."""
    import torch

    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def wait_for(device: str) -> None:
    """Until the device has done what it was asked for."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@dataclass
class Cost:
    """Of one piece of work.

    Attributes:
        seconds: that it took.
        peak: bytes of the computer's memory while it went on, beyond those before it.
        peak_on_device: the same of the device's own memory.
    """

    seconds: float = 0.0
    peak: int = 0
    peak_on_device: int = 0


@contextmanager
def measured(device: str) -> Iterator[Cost]:
    """Fills the cost that it yields when the work is done."""
    cost, done, most = Cost(), threading.Event(), [resident()]
    before = most[0]

    def watch() -> None:
        while not done.wait(_EVERY):
            most.append(max(most.pop(), resident()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    wait_for(device)
    there = _begin_peak(device)
    start = time.perf_counter()
    try:
        yield cost
        wait_for(device)
    finally:
        cost.seconds = time.perf_counter() - start
        done.set()
        thread.join()
        cost.peak = max(most[0], resident()) - before
        cost.peak_on_device = _peak_on(device) - there


def _begin_peak(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    return on_device(device)


def _peak_on(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


def touched(module: nn.Module) -> None:
    """Reads a byte of every page of a model's tensors: what was only mapped from a file is in memory then."""
    import torch

    for value in module.parameters():
        if value.device.type == "cpu":
            # one byte of each 4096
            torch.sum(value.detach().view(torch.uint8).flatten()[::4096])


@dataclass
class Stopwatch:
    """Times the calls of a denoiser within a picture, the same way in whatever loop calls it.

    Attributes:
        device: where it computes.
        began: when the first call of the picture began.
        ended: when the last step of it did.
        left: when the last call of it did.
        inside: seconds within its calls.
        calls: what it was called with, the last picture's.
    """

    device: str
    began: float = 0.0
    ended: float = 0.0
    left: float = 0.0
    inside: float = 0.0
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    _entered: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds from the first call to the end of the last step."""
        return self.ended - self.began

    @property
    def calling(self) -> float:
        """Seconds from the first call to the end of the last one, which needs no word from the loop that calls."""
        return self.left - self.began

    def step(self) -> None:
        """To be called when a step ends."""
        wait_for(self.device)
        self.ended = time.perf_counter()

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[Stopwatch]:
        """Watches a module from now on, for one picture."""
        self.began, self.inside = 0.0, 0.0
        self.calls.clear()
        hooks = (
            module.register_forward_pre_hook(self._enter, with_kwargs=True),
            module.register_forward_hook(self._leave),
        )
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def replayed(self, module: nn.Module) -> float:
        """Seconds of the same calls one after the other, with nothing between them."""
        import torch

        with torch.no_grad():
            wait_for(self.device)
            start = time.perf_counter()
            for args, kwargs in self.calls:
                module(*args, **kwargs)
            wait_for(self.device)
            return time.perf_counter() - start

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wait_for(self.device)
        self._entered = time.perf_counter()
        self.began = self.began or self._entered
        self.calls.append((args, kwargs))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        wait_for(self.device)
        self.left = time.perf_counter()
        self.inside += self.left - self._entered
