"""Several processes that render one picture, as ``torch.distributed.run`` starts them:

    python -m torch.distributed.run --nproc_per_node 2 tasks.py run WORKFLOW --models MODELS

Each is told its number by environment variables. The first one saves and prints; the others' pictures, which are the
same, are thrown away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass(frozen=True)
class Share:
    """This process among those that render together.

    Attributes:
        processes: how many there are.
        device: where this one computes; None leaves it to the host.
        output: where it saves.
        first: whether it speaks for all.
    """

    processes: int
    device: str | None
    output: Path
    first: bool


@contextmanager
def joined(device: str | None, output: Path) -> Iterator[Share]:
    """Joins the others; alone where this process was started alone.

    Args:
        device: as the user gave it; of several processes on CUDA each has its own.
        output: where the pictures go.
    """
    processes = _count()
    if processes < 2:
        yield Share(1, device, output, first=True)
        return
    import torch

    cuda = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        first = torch.distributed.get_rank() == 0
        with TemporaryDirectory() as elsewhere:
            yield Share(processes, device, output if first else Path(elsewhere), first)
    finally:
        torch.distributed.destroy_process_group()


def leave(status: int) -> int:
    """Ends this process with an exit status where it is one of several; returns the status where it is alone.

    Python's own end is left out: during it gloo may abort a process whose work is done. A thread of gloo lets go of its
    last tensors only after it told that they are there, and needs Python's lock for that. From a Python that is ending
    it gets its own end instead, in the midst of a C++ destructor: "terminate called without an active exception".
    ``destroy_process_group`` waits for these threads unless something still refers to the group, and torch 2.13 itself
    does, for ever, once a group was given to a functional collective, as diffusers gives it.
    """
    if _count() < 2:
        return status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
