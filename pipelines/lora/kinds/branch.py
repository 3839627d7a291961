"""What every live branch has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# module, name of a buffer, value
Write = Callable[[nn.Module, str, torch.Tensor], None]


class Branch(nn.Module):
    """What adds a change to a layer's output. Its strength is a tensor: another number asks for no new compilation."""

    def set_strength(self, strength: float, write: Write) -> None:
        """Gives it another strength; ``write`` sets a buffer, wherever it is."""
        write(self, "multiplier", torch.tensor(self._multiplier(strength), dtype=torch.float32))

    def _multiplier(self, strength: float) -> float:
        return strength

    def _keep(self, **tensors: torch.Tensor | None) -> None:
        for name, value in tensors.items():
            self.register_buffer(name, value, persistent=False)
