"""Memory for merging: one float32 matrix at a time, used again for the next layer.

Fresh pages for each layer cost a CPU more than its arithmetic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class Workspace:
    """Where merging computes.

    Args:
        device: e.g. ``"cpu"``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._kept: torch.Tensor | None = None

    def product(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """``first`` @ ``second``, both float32 [n, k] and [k, m]; its memory is the next call's."""
        import torch

        first, second = first.to(self.device), second.to(self.device)
        return torch.mm(first, second, out=self.empty((first.shape[0], second.shape[1])))

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """A float32 tensor of any values; its memory is the next call's."""
        import torch

        size = math.prod(shape)
        if self._kept is None or self._kept.numel() < size:
            # let go of first: two of them are never there
            self._kept = None
            self._kept = torch.empty(size, device=self.device)
        return self._kept[:size].view(*shape)
