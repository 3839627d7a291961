"""How a live branch multiplies: as the layer that it hangs on does, a linear one or a convolution.

The matrix of a convolution's change is [out, in * height * width], its kernel's last axes in one. So every kind
computes with matrices alone, and only what is told here differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolution_of(layer: Any) -> Any:
    """The convolution that a layer, or rows of one, is; None for a linear layer."""
    layer = getattr(layer, "whole", layer)
    return layer if isinstance(layer, _CONVOLUTIONS) else None


def through(layer: Any, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """What the layer would give with ``matrix`` for its weight and no bias: its stride, padding and groups count."""
    convolution = convolution_of(layer)
    if convolution is None:
        return linear(x, matrix)
    kernel = matrix.reshape(len(matrix), *convolution.weight.shape[1:])
    return convolution._conv_forward(x, kernel, None)


def through_both(layer: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The same with ``up`` @ ``down``, one after the other."""
    convolution = convolution_of(layer)
    if convolution is None:
        return linear(linear(x, down), up)
    if convolution.groups > 1:
        # the rows of each group see other channels: no first half is common to all
        return through(layer, x, up @ down)
    axis = channel_axis(layer)
    return linear(through(layer, x, down).movedim(axis, -1), up).movedim(-1, axis)


def channel_axis(layer: Any) -> int:
    """The axis of the output that has one value for each of the layer's rows, counted from the end."""
    convolution = convolution_of(layer)
    return -1 if convolution is None else 1 - convolution.weight.ndim


def by_channel(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """One value for each of the layer's rows, in a shape that multiplies its output."""
    return values.view(-1, *[1] * (-1 - channel_axis(layer)))
