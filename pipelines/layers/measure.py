"""How many bytes a part takes: before it is loaded, from its shapes, and afterwards, from its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files.block_types import BLOCK_TYPES, GROUPED_TYPES
from ..machine.plan import PartSizes
from ..machine.transfer import tensor_bytes

if TYPE_CHECKING:
    from ..files.header import TensorInfo
    from .holding import Holding


def expected_sizes(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    infos: Mapping[str, TensorInfo],
    dtype: torch.dtype,
    holding: Holding | None,
) -> PartSizes:
    """What ``fill`` will make of a model.

    Args:
        model: made by ``build_empty``: shapes without storage.
        blocks: those of its modules that can be streamed.
        infos: the source's, by the model's names.
        dtype: what it runs in.
        holding: the form of its layers' weights.
    """
    held: dict[nn.Module, int] = {}
    scratch = 0
    counted: set[int] = set()
    for owner, module in model.named_modules():
        size = 0
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, value in own:
            if id(value) in counted:
                continue
            counted.add(id(value))
            name = f"{owner}.{leaf}" if owner else leaf
            stored = _stored(module, owner, leaf, infos.get(name), dtype, holding)
            if stored is None:
                size += value.numel() * (dtype.itemsize if name in infos else value.element_size())
            else:
                size += stored
                scratch = max(scratch, value.numel() * dtype.itemsize)
        held[module] = size
    within = [sum(held[inner] for inner in block.modules()) for block in blocks]
    return PartSizes(sum(held.values()), tuple(within), scratch)


def _stored(
    module: nn.Module, owner: str, leaf: str, info: TensorInfo | None, dtype: torch.dtype, holding: Holding | None
) -> int | None:
    """Bytes of a weight that is not held dense; None where it is."""
    if info is None or leaf != "weight":
        return None
    shape = module.get_parameter(leaf).shape
    if info.packed and isinstance(module, nn.Linear):
        if info.dtype in GROUPED_TYPES:
            return shape[0] * GROUPED_TYPES[info.dtype].row_bytes(shape[1])
        # what is packed otherwise takes a byte for each value
        block = BLOCK_TYPES.get(info.dtype)
        return shape.numel() if block is None else shape.numel() // block.values * block.size
    return holding.size(shape, dtype) if holding is not None and holding.takes(module, owner) else None


def held_bytes(module: nn.Module) -> int:
    """Bytes of a loaded module's tensors, whatever form they are in."""
    return tensor_bytes({id(value): value for value in (*module.parameters(), *module.buffers())}.values())
