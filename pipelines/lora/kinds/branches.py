"""The live branches: modules that add a change to what a layer gave. Each kind's own module says whose rule it is.

Their tensors are buffers, so that they move between devices with the layer that they hang on.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear


class _Branch(nn.Module):
    def _keep(self, **tensors: torch.Tensor | None) -> None:
        for name, value in tensors.items():
            self.register_buffer(name, value, persistent=False)


class TrainerBranch(_Branch):
    """float32: down, up (left out where it is None), times scale, times strength, cast, add."""

    down: torch.Tensor
    up: torch.Tensor | None
    scale: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor | None, scale: float, strength: float) -> None:
        super().__init__()
        # float32 tensors, not Python numbers: two roundings, scale first
        self._keep(
            down=down,
            up=up,
            scale=torch.tensor(scale, dtype=torch.float32),
            multiplier=torch.tensor([strength], dtype=torch.float32),
        )

    def forward(self, layer: nn.Linear, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        added = linear(x.to(torch.float32), self.down)
        if self.up is not None:
            added = linear(added, self.up)
        return output + (added * self.scale * self.multiplier).to(output.dtype)


class PeftBranch(_Branch):
    """In the base's dtype; every operation rounds to it."""

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor, scaling: float) -> None:
        super().__init__()
        self._keep(down=down, up=up)
        self.scaling = scaling

    def forward(self, layer: nn.Linear, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + linear(linear(x.to(self.down.dtype), self.down), self.up) * self.scaling


class DoraBranch(_Branch):
    """A LoRA branch and a rescaling of the changed weight's rows, both in float32."""

    down: torch.Tensor
    up: torch.Tensor
    magnitude: torch.Tensor
    multiplier: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor, magnitude: torch.Tensor, strength: float) -> None:
        super().__init__()
        multiplier = torch.tensor([strength], dtype=torch.float32)
        self._keep(down=down, up=up, magnitude=magnitude, multiplier=multiplier)

    def forward(self, layer: nn.Linear, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.float32)
        added = (linear(linear(x, self.down), self.up) * self.multiplier).to(output.dtype)
        # made anew on each call, as the trainer does: kept, it would be the transformer once more in float32
        base = layer.weight.dequantize() if hasattr(layer, "weight_qtype") else layer.weight
        weight = base.to(torch.float32) + (self.up @ self.down) * self.multiplier.mean()
        norm = torch.linalg.norm(weight, dim=1)
        rescaled = (self.magnitude / norm - 1).view(1, -1) * linear(x, weight)
        return output + (added + rescaled.to(output.dtype))


class LoKrBranch(_Branch):
    """Contracts x, seen as [..., in_m, in_n], with w2 (by way of its rank), then with w1, in the layer's dtype."""

    w1: torch.Tensor
    w2: torch.Tensor
    w2_b: torch.Tensor | None
    multiplier: torch.Tensor

    def __init__(
        self, w1: torch.Tensor, w2: torch.Tensor, w2_b: torch.Tensor | None, scale: float, strength: float,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self._keep(
            # the scale is folded into w1 after the cast
            w1=w1.to(dtype) * torch.tensor(scale, dtype=torch.float32),
            w2=w2.to(dtype),
            w2_b=None if w2_b is None else w2_b.to(dtype),
            multiplier=torch.tensor(strength, dtype=torch.float32).to(dtype),
        )
        self._inside = (w1.shape[1], (w2 if w2_b is None else w2_b).shape[1])

    def forward(self, layer: nn.Linear, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        folded = x.to(self.w2.dtype).unflatten(-1, self._inside)
        if self.w2_b is None:
            folded = torch.einsum("...qs,os->...qo", folded, self.w2)
        else:
            folded = torch.einsum("...qs,rs->...qr", folded, self.w2_b)
            folded = torch.einsum("...qr,or->...qo", folded, self.w2)
        added = torch.einsum("...qo,pq->...po", folded, self.w1).flatten(-2, -1)
        return output + added * self.multiplier
