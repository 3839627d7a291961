"""Cells rendered in a process of its own, for kernels that a process takes at its start and keeps.

``elsewhere_child.py`` is what runs there.
"""

from __future__ import annotations

import base64
import io
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..amounts import size
from ..errors import ChildError, DeviceMemoryError
from ..machine.child import Child
from ..machine.ram import free_ram
from ..models import catalogue

if TYPE_CHECKING:
    import torch

    from ..observer import Observer
    from .cell import Cell

_CHILD = Path(__file__).with_name("elsewhere_child.py")
_ASK_EVERY = 0.1  # seconds between two looks at the observer
_ROOM = 1 << 31  # bytes; of PyTorch, the libraries and what a run needs beside its weights


class Elsewhere:
    """The process: it starts with the first cell, and keeps its weights for the next.

    Args:
        environment: its variables beside those of this process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._child: Child | None = None

    def render(self, cell: Cell, observer: Observer) -> tuple[torch.Tensor, dict[str, Any]]:
        """A cell's picture, [H, W, 3] of 0..1 in whole 255ths, and the run's report.

        Args:
            cell: what to render.
            observer: told how far it is; where it raises, the process ends at once.

        Raises:
            DeviceMemoryError: there is no room for the weights a second time.
            ChildError: the process could not be started, or its run failed.
        """
        import torch

        try:
            child = self._child = self._child or self._started(cell)
            child.send({"cell": packed(cell)})
            while True:
                said = child.heard(_ASK_EVERY)
                observer.check()
                if said is None:
                    continue
                if "stage" in said:
                    observer.stage(said["stage"])
                elif "failed" in said:
                    raise ChildError(said["failed"])
                elif "error" in said:
                    raise ChildError(f"{said['why'].capitalize()} before it gave a picture.")
                else:
                    pixels = torch.frombuffer(bytearray(base64.b64decode(said["pixels"])), dtype=torch.uint8)
                    return pixels.reshape(said["shape"]).float() / 255, said["report"]
        except BaseException:
            # failed or interrupted: what it still does is of no use
            self.end()
            raise

    def _started(self, cell: Cell) -> Child:
        import torch

        weights = sum(stamp.size for stamp in cell.handle.checkpoint.files)
        needed, free = weights + _ROOM, free_ram()
        if needed > free:
            raise DeviceMemoryError(
                f"A process of its own needs {size(needed)} of memory, and {size(free)} are free. Close other programs."
            )
        try:
            child = Child(_CHILD, self._environment)
        except (OSError, ValueError) as error:
            raise ChildError("A process of its own cannot be started.") from error
        package = __name__.partition(".pipelines.")[0]
        child.send({"path": list(map(str, sys.path)), "package": package, "threads": torch.get_num_threads()})
        return child

    def end(self) -> None:
        """Ends the process, where there is one."""
        if self._child is not None:
            child, self._child = self._child, None
            child.end()


def packed(cell: Cell) -> str:
    """A cell as text for a process of ours. What models state goes by its name: it holds functions."""
    names = {id(value): name for name, value in _stated()}

    class Packer(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return names.get(id(obj))

    options = replace(cell.handle.options, embeddings_on_disk=False)
    buffer = io.BytesIO()
    Packer(buffer).dump(replace(cell, handle=replace(cell.handle, options=options, lease=None)))
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> Cell:
    """A cell that :func:`packed` made in the process that started this one."""
    values = dict(_stated())

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, pid: str) -> object:
            return values[pid]

    return Unpacker(io.BytesIO(base64.b64decode(text))).load()


def _stated() -> Iterator[tuple[str, object]]:
    """What sources of weights hold of the models' facts, by name."""
    for facts in catalogue().values():
        for part, about in facts.files.parts.items():
            name = f"{facts.id}/{part}"
            yield name, about
            yield f"{name}/files", about.files
            for index, layout in enumerate(about.files.layouts):
                yield f"{name}/layouts/{index}", layout
