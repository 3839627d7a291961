"""Steps that reuse what blocks gave in an earlier one: diffusers' first-block cache, on for one run.

In each step the first block runs. Where its contribution, what it adds to the tokens, differs from that of the last
step that ran all blocks by no more than a threshold, the other blocks do not run: what they added then is added again.
The difference is the mean of absolute values over the mean of absolute values of the earlier contribution.

This changes the picture. It is off unless a user switches it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from .cached_blocks import CachedBlocks, Called, Returned


def check_step_caching(threshold: float, processes: int) -> None:
    """Raises InputError where steps cannot be cached here; 0 is off, and always can."""
    if not threshold:
        return
    if processes > 1:
        raise InputError(
            f"step_caching cannot be used with {processes} processes: each would decide by its own part of the "
            "picture which blocks to leave out, and wait for the others in vain. Set it to 0 on AITK Runtime Options, "
            "or run in one process."
        )
    try:
        import_module(".cached_blocks", __package__)
    except ImportError as error:
        raise InputError(
            f"step_caching needs diffusers' first-block cache, which diffusers {version('diffusers')} does not have as "
            f"this pack knows it ({error}). Install diffusers 0.42.1, or set step_caching to 0 on AITK Runtime Options."
        ) from error


class StepCache:
    """One run's.

    Args:
        threshold: 0 to 1; 0 is off.

    Attributes:
        threshold: see above.
        block_calls: of main blocks that the run's steps asked for.
        reused: how many of them were not made.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.block_calls = 0
        self.reused = 0
        self._groups: list[CachedBlocks] = []

    @contextmanager
    def on(
        self, denoiser: nn.Module, blocks: Sequence[nn.Module], returned: Callable[[nn.Module], Returned]
    ) -> Iterator[None]:
        """Has a denoiser call its main blocks through the cache; one denoiser at a time.

        Args:
            denoiser: contains the blocks.
            blocks: in the order of their calls.
            returned: what a block gives.
        """
        if not self.threshold:
            yield
            return
        from .cached_blocks import CachedBlocks

        places = {child: (parent, name) for parent in denoiser.modules() for name, child in parent.named_children()}
        kinds = [list(alike) for _, alike in groupby(blocks, type)]
        self._groups = [CachedBlocks(alike, returned(alike[0]), self.threshold) for alike in kinds]
        try:
            for called in self._calls():
                setattr(*places[called.block], called)
            yield
        finally:
            for called in self._calls():
                setattr(*places[called.block], called.block)
            self.forget()
            self._groups = []

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """To be around one call of a denoiser.

        Args:
            name: which of a step's calls it is: each reuses its own results alone.
        """
        before = self._runs()
        with ExitStack() as contexts:
            for group in self._groups:
                contexts.enter_context(group.cache_context(name))
            yield
        asked = len(self._calls())
        self.block_calls += asked
        self.reused += asked - (self._runs() - before)

    def forget(self) -> None:
        """Empties the caches: the next call begins another picture."""
        for group in self._groups:
            group.forget()

    def _calls(self) -> list[Called]:
        return [called for group in self._groups for called in group.calls()]

    def _runs(self) -> int:
        return sum(called.runs for called in self._calls())
