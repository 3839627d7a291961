"""Memory for merging: one float32 matrix at a time for each thread, used again for the next layer.

Fresh pages for each layer cost a CPU more than its arithmetic.
"""

from __future__ import annotations

import math
import threading
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
        self._own = threading.local()

    def product(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """``first`` @ ``second``, both float32 [n, k] and [k, m]; its memory is the thread's next call's."""
        import torch

        first, second = first.to(self.device), second.to(self.device)
        return torch.mm(first, second, out=self.empty((first.shape[0], second.shape[1])))

    def widened(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor in float32, on the device; in memory that is the thread's next call's, where it is no such one."""
        import torch

        if value.dtype == torch.float32:
            return value.to(self.device)
        return self._empty("widened", value.shape).copy_(value)

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """A float32 tensor of any values; its memory is the thread's next call's."""
        return self._empty("product", shape)

    def _empty(self, use: str, shape: Sequence[int]) -> torch.Tensor:
        import torch

        size = math.prod(shape)
        kept: torch.Tensor | None = getattr(self._own, use, None)
        if kept is None or kept.numel() < size:
            # let go of first: two of them are never there
            setattr(self._own, use, None)
            kept = torch.empty(size, device=self.device)
            setattr(self._own, use, kept)
        return kept[:size].view(*shape)
