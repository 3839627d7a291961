"""The noise levels of a run, as a value that a model makes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Schedule:
    """The levels of a flow-matching run: x = (1 - s) * image + s * noise.

    A model that counts otherwise, or whose loop needs more than the levels, has a subclass of this. Its tensors have
    one entry a level, in the same order.

    Attributes:
        sigmas: [steps + 1], float32: the noise level before each step, falling to 0; the sampler's SIGMAS.
    """

    sigmas: torch.Tensor

    def last(self, steps: int) -> Self:
        """The end of it: what runs where ``denoise`` is below 1."""
        return replace(self, **{f.name: getattr(self, f.name)[-(steps + 1) :] for f in fields(self)})

    def to(self, device: str) -> Self:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def start(self, noise: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """Where the loop begins.

        Args:
            noise: of the picture, in the dtype that the loop starts in.
            given: latents in the model's scale, float32, of the same shape; None is none.

        Returns:
            The noise, mixed with what is given as far as the first level leaves it, in the noise's dtype.
        """
        sigma = float(self.sigmas[0])
        if given is None or sigma == 1:
            return noise
        return ((1 - sigma) * given + sigma * noise.float()).to(noise.dtype)
