"""How a run reports to whoever started it, and how it is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Observer(Protocol):
    """What a run calls while it works. Any method may raise to interrupt the run."""

    def check(self) -> None:
        """Called between pieces of work; raises when the user has asked to stop."""

    def stage(self, text: str) -> None:
        """A new phase began, e.g. ``"loading the transformer"``."""

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        """A sampling step ended.

        Args:
            done: steps done so far over the whole batch, 1..total.
            total: steps of the whole batch.
            x0: the current estimate of the clean latent, [1, C, h, w], on the compute device.
        """


class SilentObserver:
    """Reports nowhere and never interrupts."""

    def check(self) -> None: ...

    def stage(self, text: str) -> None: ...

    def step(self, done: int, total: int, x0: torch.Tensor) -> None: ...
