"""Whether tensors hold NaN or Inf: such a file is damaged, or its numbers do not fit into the dtype that it runs in."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import FileError

if TYPE_CHECKING:
    import torch

    from ..files.packed import PackedTensor

_AT_ONCE = 1 << 20  # bytes: a smaller tensor is checked sooner than it is handed on
_BEHIND = 256 << 20  # bytes that may wait: what is said to be read is read, but for these


class FiniteChecks:
    """Checks tensors while the next ones are being prepared: most of it is waiting for memory, or for the disk.

    Args:
        where: names the source in errors.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._worker = ThreadPoolExecutor(1, "aitk-check")
        self._waiting: deque[tuple[Future[bool], str, torch.Tensor]] = deque()
        self._behind = 0

    def add(self, name: str, value: torch.Tensor) -> None:
        """Checks a tensor, now or soon, which nobody writes to meanwhile.

        Raises:
            FileError: it holds NaN or Inf, or one that was added earlier does.
        """
        if value.nbytes < _AT_ONCE:
            check_finite(value, name, self._where)
            return
        self._waiting.append((self._worker.submit(is_finite, value), name, value))
        self._behind += value.nbytes
        while self._behind > _BEHIND and len(self._waiting) > 1:
            self._finish_one()

    def finish(self) -> None:
        """Waits for the rest; raises as :meth:`add`."""
        while self._waiting:
            self._finish_one()

    def _finish_one(self) -> None:
        found, name, value = self._waiting.popleft()
        self._behind -= value.nbytes
        if not found.result():
            raise _not_finite(value, name, self._where)

    def __enter__(self) -> FiniteChecks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(cancel_futures=True)


def check_finite(value: torch.Tensor, name: str, where: str) -> None:
    """Raises FileError where a floating-point tensor holds NaN or Inf."""
    if not is_finite(value):
        raise _not_finite(value, name, where)


def check_finite_packed(value: PackedTensor, dtype: torch.dtype, name: str, where: str) -> None:
    """The same for a packed tensor that is to run in ``dtype``, as far as it can be told without making it dense."""
    import torch

    # neither NaN nor Inf is below it
    if not value.largest() <= torch.finfo(dtype).max:
        check_finite(value.dequantize(dtype), name, where)


def is_finite(value: torch.Tensor) -> bool:
    """False for a floating-point tensor with NaN or Inf."""
    import torch

    if value.numel() == 0 or not value.is_floating_point():
        return True
    # NaN and Inf stay in a sum, and a sum is what a CPU is fastest at; it may leave the dtype's range by itself
    if math.isfinite(value.sum().item()):
        return True
    # the extremes carry them too: no second tensor of the same size is made
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value))


def _not_finite(value: torch.Tensor, name: str, where: str) -> FileError:
    import torch

    hint = " float16 ends at 65504: choose bfloat16 or float32." if value.dtype == torch.float16 else ""
    return FileError(f"{where} is damaged: its tensor {name!r} holds NaN or Inf.{hint} Download it again.")
