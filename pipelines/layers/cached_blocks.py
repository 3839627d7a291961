"""Blocks as diffusers' first-block cache wants them, for as long as a run has it on.

diffusers knows blocks by their class and by the names of their arguments. It does not know Lumina2's nor our own, looks
in Z-Image's for an argument of another name, and takes FLUX.2's two kinds of blocks for one sequence, whose outputs it
then cannot subtract. So a block is called through a module of ours, whose class diffusers is told of, and each kind of
blocks has a cache of its own.

The hooks lie on those modules and not on the blocks: a block that is not needed is not called, so that its weights do
not come to the device for nothing, and nothing is left on a block when the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import CacheMixin
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry

# not re-exported, but the only way to tell diffusers of a block
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn

# what a main block gives: all tokens, which are its first argument; or the image's and the text's apart, which are its
# first two in this order, or given by the names hidden_states and encoder_hidden_states
Returned = Literal["tokens", "image, text", "text, image"]


class Called(nn.Module):
    """What is called in a block's place. diffusers reads the names of its arguments.

    Args:
        block: the block.

    Attributes:
        runs: how often the block itself was called.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.runs = 0


class SingleStream(Called):
    """For a block that takes all tokens first, and returns them."""

    def forward(self, hidden_states: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.runs += 1
        return self.block(hidden_states, *rest)


class DoubleStream(Called):
    """For a block that takes the image's tokens and the text's first, and returns both in this order."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.runs += 1
        return self.block(hidden_states, encoder_hidden_states, *rest)


class TextFirst(Called):
    """For a block that takes both by their names, and returns the text's tokens first."""

    def forward(
        self, *, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.runs += 1
        return self.block(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **named)


TransformerBlockRegistry.register(SingleStream, TransformerBlockMetadata(return_hidden_states_index=0))
TransformerBlockRegistry.register(
    DoubleStream, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
)
TransformerBlockRegistry.register(
    TextFirst, TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)
)
_KINDS: dict[Returned, type[Called]] = {
    "tokens": SingleStream, "image, text": DoubleStream, "text, image": TextFirst,
}  # fmt: skip


class CachedBlocks(nn.Module, CacheMixin):
    """Blocks of one kind that follow each other, with a cache for each branch; a single one is called as it is.

    Args:
        blocks: in the order of their calls.
        returned: what they give.
        threshold: above which change of the first block's contribution the others are called, see :mod:`.step_cache`.
    """

    def __init__(self, blocks: Sequence[nn.Module], returned: Returned, threshold: float) -> None:
        super().__init__()
        # diffusers looks for blocks under this name
        self.blocks = nn.ModuleList(_KINDS[returned](block) for block in blocks)
        if len(blocks) > 1:
            self.enable_cache(FirstBlockCacheConfig(threshold))

    def calls(self) -> list[Called]:
        """What is called in each block's place, in order."""
        return [called for called in self.blocks if isinstance(called, Called)]

    def forget(self) -> None:
        """Empties the caches of all branches."""
        HookRegistry.check_if_exists_or_initialize(self).reset_stateful_hooks()
