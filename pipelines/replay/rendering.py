"""What a process of its own does with a cell; see ``elsewhere.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..engine.engine import Engine
from ..errors import AITKError
from ..machine.machine import PlainMachine
from ..observer import SilentObserver
from ..run.sample import sample
from .elsewhere import unpacked

if TYPE_CHECKING:
    from ..compare.pixels import Pixels


class _Telling(SilentObserver):
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def stage(self, text: str) -> None:
        self._tell(text)


def renderer(threads: int, tell: Callable[[str], None]) -> Callable[[str], tuple[Pixels, dict[str, Any]]]:
    """An engine of the CPU, and what renders packed cells with it.

    Args:
        threads: of the process that asks.
        tell: gets what a run is doing.
    """
    import torch

    torch.set_num_threads(threads)
    engine, observer = Engine(PlainMachine()), _Telling(tell)

    def render(cell: str) -> tuple[Pixels, dict[str, Any]]:
        wanted = unpacked(cell)
        result = sample(engine, wanted.handle, wanted.request, observer)
        return (result.images[0] * 255).round().byte().numpy(), result.report

    return render


def in_words(error: Exception) -> str:
    """An error for who asked: its own words where they are meant for a user."""
    return str(error) if isinstance(error, AITKError) else f"The run failed: {type(error).__name__}."
