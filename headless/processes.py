"""Several processes that render one picture, as ``torch.distributed.run`` starts them:

    python -m torch.distributed.run --nproc_per_node 2 tasks.py run WORKFLOW --models MODELS

Each is told its number by environment variables. The first one saves and prints; the others' pictures, which are the
same, are thrown away.
"""

from __future__ import annotations

import os
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
    processes = int(os.environ.get("WORLD_SIZE", "1"))
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
