"""Other kernels that compute the same thing, which round elsewhere: the nearest to hand first.

None is coarser than those in force, as TF32 would be: a mistake must not pass as what such a one changes. Two more were
measured and left out, for they changed nothing, with shapes of real models neither: another number of threads, and
oneDNN held to AVX-512 (``compare/floor.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

# read by torch and oneDNN when they start, and never again
_PLAINEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


@dataclass(frozen=True)
class Kernels:
    """Other kernels.

    Attributes:
        name: in words that stand in brackets.
        here: has this process take them meanwhile; None for those that a process has from its start.
        environment: the variables that give a process these.
    """

    name: str
    here: Callable[[], AbstractContextManager[None]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def other_kernels(device: str) -> tuple[Kernels, ...]:
    """Those of a device that are not the ones in force, in the order in which they are tried."""
    import torch

    if device.startswith("cuda"):
        return tuple(_of_a_gpu())
    if device != "cpu":
        return (Kernels("attention in single steps", _attention()),)
    onednn = torch.backends.mkldnn
    found = [Kernels("attention in single steps", _attention())]
    if onednn.is_available() and onednn.enabled:
        found.append(Kernels("without oneDNN", _set(onednn, "enabled", False)))
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        found.append(Kernels("the CPU's plainest instructions", environment=_PLAINEST))
    return tuple(found)


def _of_a_gpu() -> Iterator[Kernels]:
    import torch
    from torch.nn.attention import SDPBackend

    # what a backend cannot do, as FLASH with a mask, goes to single steps
    yield Kernels("attention in single steps", _attention())
    yield Kernels("memory-efficient attention", _attention(SDPBackend.EFFICIENT_ATTENTION))
    yield Kernels("flash attention", _attention(SDPBackend.FLASH_ATTENTION))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    sums = matmul.allow_bf16_reduced_precision_reduction
    yield Kernels(
        f"sums of bfloat16 {'without' if sums else 'with'} steps in bfloat16",
        _set(matmul, "allow_bf16_reduced_precision_reduction", not sums),
    )
    if not cudnn.deterministic:
        yield Kernels("cuDNN's deterministic kernels", _set(cudnn, "deterministic", True))
    if matmul.allow_tf32:
        yield Kernels("products without TF32", _set(matmul, "allow_tf32", False))
    if cudnn.allow_tf32:
        yield Kernels("convolutions without TF32", _set(cudnn, "allow_tf32", False))


def _attention(*preferred: object) -> Callable[[], AbstractContextManager[None]]:
    """Torch's own attention with one of its backends, or in single steps, which it can always do."""

    @contextmanager
    def meanwhile() -> Iterator[None]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel([*preferred, SDPBackend.MATH]):  # pyright: ignore[reportArgumentType]
            yield

    return meanwhile


def _set(owner: object, name: str, value: bool) -> Callable[[], AbstractContextManager[None]]:
    """A switch of torch's that is put back afterwards."""

    @contextmanager
    def meanwhile() -> Iterator[None]:
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, before)

    return meanwhile
