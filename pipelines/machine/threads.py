"""Work that is shared out over threads of which each computes alone.

torch shares each single operation out over its threads, and waits for all of them before the next one. Where operations
take a millisecond, that is dear: what one thread wrote another one reads, out of the other's cache, and beside other
programs every wait is a turn of the scheduler. Merging a LoRA takes two cores half as long with threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

T = TypeVar("T")


def in_threads(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Does the work with each item, on the CPU, in as many threads as torch has; returns when all of it is done.

    Args:
        work: runs without gradients, in the caller's inference mode; what two items write must not overlap.
        items: in whatever order.

    Raises:
        The first error of the work.
    """
    import torch

    count, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    # whoever is free takes the next one
    left = iter(items)

    def alone() -> None:
        # both are a thread's own
        with torch.inference_mode(inference), torch.no_grad():
            for item in left:
                work(item)

    if count == 1 or len(items) == 1:
        alone()
        return
    threads = _threads(count)
    found = [threads.submit(alone) for _ in range(min(count, len(items)))]
    wait(found)
    for one in found:
        one.result()


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    import torch

    threads, all_there = ThreadPoolExecutor(count, "aitk-compute"), Barrier(count + 1)

    def begin() -> None:
        # torch gives a thread the number that is set for all when it first asks, whatever was set in it before
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_there.wait()

    for _ in range(count):
        threads.submit(begin)
    all_there.wait()
    # it was set for threads that begin later, too
    torch.set_num_threads(count)
    return threads
