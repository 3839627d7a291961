"""Lending a module that lies in CPU memory to a device, whole or block by block.

The device gets copies and the module's own tensors are put back afterwards, so that nothing is copied from the device
to the CPU and nothing that a kernel does to a copy remains. Memory that CPU and GPU share (Apple's MPS) holds no second
copy: there the tensors are moved there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def lent(module: nn.Module, device: str, streamed: Sequence[nn.Module] = ()) -> Iterator[nn.Module]:
    """Yields the module with its tensors on ``device``.

    Args:
        module: on the CPU.
        device: where it runs.
        streamed: blocks in it that come to the device for their own call alone, and leave it after.
    """
    if device == "cpu":
        yield module
        return
    apart = {id(inner) for block in streamed for inner in block.modules()}
    resident = _Visit([inner for inner in module.modules() if id(inner) not in apart], device)
    visits = [_Visit(list(block.modules()), device) for block in streamed]
    hooks: list[Any] = []
    try:
        for block, visit in zip(streamed, visits, strict=True):
            hooks.append(block.register_forward_pre_hook(lambda *_, visit=visit: visit.begin()))
            hooks.append(block.register_forward_hook(lambda *_, visit=visit: visit.end(), always_call=True))
        resident.begin()
        yield module
    finally:
        for hook in hooks:
            hook.remove()
        for visit in (resident, *visits):
            visit.end()


class _Visit:
    """Some modules' own tensors, without those of modules inside them, on the device for a while."""

    def __init__(self, modules: Sequence[nn.Module], device: str) -> None:
        self._modules = modules
        self._device = device
        self._shared = device.startswith("mps")
        self._home: list[tuple[dict[str, Any], str, torch.Tensor | None]] = []

    def begin(self) -> None:
        copies: dict[int, Any] = {}
        for module in self._modules:
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is None:
                        continue
                    if id(value) not in copies:
                        copies[id(value)] = _copy(value, self._device)
                    self._home.append((store, name, None if self._shared else value))
                    store[name] = copies[id(value)]

    def end(self) -> None:
        while self._home:
            store, name, value = self._home.pop()
            store[name] = _copy(store[name], "cpu") if value is None else value


def _copy(value: torch.Tensor, device: str) -> torch.Tensor:
    import torch

    copy = value.to(device)
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(value, torch.nn.Parameter) else copy
