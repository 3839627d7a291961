"""Random weights for tiny models."""

from __future__ import annotations

import torch
from torch import nn


def spread(model: nn.Module) -> nn.Module:
    """Random weights that carry a signal through: what starts as zero would hide every LoRA and every text."""
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
