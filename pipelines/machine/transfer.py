"""Copies between a part's home and its device; on CUDA beside what the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Transfer:
    """The way to one device.

    Args:
        device: e.g. ``"cuda:0"``.

    Attributes:
        device: as given.
        overlaps: whether copies can go on while the device computes.
        keeps_home: whether the device has a memory of its own, so that there are two copies.
        moved: bytes that were copied to the device so far.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.overlaps = device.startswith("cuda")
        self.keeps_home = not device.startswith("mps")
        self.moved = 0
        self._stream: Any = None

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        """A copy on the device, usable at once."""
        self.moved += tensor_bytes([value])
        return _like(value, value.to(self.device))

    def begin(self, values: Iterable[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Copies that are under way beside the computation, and the event that ends them; for :meth:`end`.

        Args:
            values: in pinned memory; from other memory the copy works, and the computation waits for it.
        """
        import torch

        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        # what home holds now was written by the stream that computes
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            copies = [_like(value, value.to(self.device, non_blocking=True)) for value in values]
            self.moved += tensor_bytes(copies)
            return copies, self._stream.record_event()

    def end(self, copies: Iterable[torch.Tensor], event: Any) -> None:
        """Makes the computation wait for copies, and their memory for the computation."""
        import torch

        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for copy in copies:
            for piece in pieces(copy):
                piece.record_stream(stream)

    def home(self, value: torch.Tensor) -> torch.Tensor:
        """A copy in CPU memory."""
        return _like(value, value.to("cpu"))


def pinned(value: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that a device reads by itself; as it is where the system has no more of that."""
    try:
        return _like(value, mapped(value, lambda piece: piece.pin_memory()))
    except RuntimeError:
        return value


def is_pinned(value: torch.Tensor) -> bool:
    """Whether all of it is in such memory."""
    return all(piece.is_pinned() for piece in pieces(value))


def mapped(value: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor with each of its :func:`pieces` changed."""
    flatten: Any = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        return change(value.detach())
    names, context = flatten()
    inner = {name: mapped(getattr(value, name), change) for name in names}
    return type(value).__tensor_unflatten__(inner, context, value.size(), value.stride())  # pyright: ignore


def pieces(value: torch.Tensor) -> Iterable[torch.Tensor]:
    """The plain tensors that a tensor is made of: optimum-quanto's have several."""
    flatten: Any = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield value
    else:
        for name in flatten()[0]:
            yield from pieces(getattr(value, name))


def tensor_bytes(values: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors take, whatever form they are in."""
    # optimum-quanto's say that they are as large as what they stand for
    return sum(piece.numel() * piece.element_size() for value in values for piece in pieces(value))


def _like(value: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    import torch

    if isinstance(value, torch.nn.Parameter) and not isinstance(copy, torch.nn.Parameter):
        return torch.nn.Parameter(copy, requires_grad=False)
    return copy
