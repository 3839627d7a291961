"""How much memory this computer lets the process have, and giving back what it has no use for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def trim_ram() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it: glibc, between pieces in use.

    glibc maps pieces of up to 32 MB, most of a model's tensors, from one heap, and that shrinks at its end alone. MKL
    keeps some megabytes for each thread that multiplied matrices; those that are in use stay.
    """
    if free := getattr(_torch_library(), "mkl_serv_free_buffers", None):
        free()
    if trim := getattr(_c_library(), "malloc_trim", None):
        trim(0)


@cache
def _c_library() -> object:
    try:
        return ctypes.CDLL(None)
    # Windows has no such thing
    except (OSError, TypeError):
        return None


@cache
def _torch_library() -> object:
    """That with MKL in it, whose mkl_free_buffers Linux builds of torch export by another name; None elsewhere."""
    import torch

    try:
        return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    except OSError:
        return None


@cache
def total_ram() -> int:
    """Bytes of the computer's memory, or of the container's where its limit is lower. It does not change."""
    import psutil

    return min([psutil.virtual_memory().total, *container_limits()])


def free_ram() -> int:
    """Bytes of memory that another process could have now, at the most."""
    import psutil

    return min(psutil.virtual_memory().available, total_ram() - psutil.Process().memory_info().rss)


def container_limits(proc: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The limits that Linux' control groups set on this process, in bytes; none elsewhere.

    Each group above it counts too. Inside a container its own group is often mounted as the top one.

    Args:
        proc: lists the process' groups, ``number:controllers:path`` a line (man 7 cgroups).
        mounted: where their files are.
    """
    try:
        lines = proc.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, leaf = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, leaf = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        steps = [step for step in path.split("/") if step not in ("", "..")]
        for count in range(len(steps) + 1):
            try:
                value = top.joinpath(*steps[:count], leaf).read_text("utf-8").strip()
            except OSError:
                continue
            # "max", or in version 1 a number that no machine has
            if value.isdecimal():
                yield int(value)
