"""Blocks of a denoiser through ``torch.compile``, one by one: once compiled, a block stays so for later runs.

Compiled code rounds elsewhere: the last bits, and with them the picture, are others. LoRAs' branches are compiled with
their block; their tensors and strengths are arguments of the code, so that another strength, or another file of the
same layers and ranks, compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import InputError

_BACKEND = "inductor"
_compiled: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


@contextmanager
def compiled(blocks: Sequence[Any]) -> Iterator[None]:
    """Runs blocks, which are modules, through compiled code.

    Raises:
        InputError: nothing can be compiled on this machine.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    for block in blocks:
        if block not in _compiled:
            # of the class: an instance's own would be the compiled one
            _compiled[block] = torch.compile(type(block).forward, backend=_BACKEND)
        block.forward = _compiled[block].__get__(block)
    try:
        yield
    except (TorchDynamoException, ImportError, OSError) as error:
        if not _is_of_compiler(error):
            raise
        raise InputError(
            f"compile cannot be used here: torch.compile failed ({type(error).__name__}). It needs a C++ compiler on a "
            "CPU and triton on a GPU. Switch compile off on AITK Runtime Options."
        ) from error
    finally:
        for block in blocks:
            del block.forward


def _is_of_compiler(error: BaseException) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
