"""A run's progress on a node, and the user's Cancel in a run."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING

from ..pipelines.amounts import duration
from ..pipelines.errors import PackageError

if TYPE_CHECKING:
    import torch

    from .host import Host, ProgressBar

_SAY_AGAIN = 1.0  # seconds
_PACK = __name__.removesuffix(".nodes.observer")


class NodeObserver:
    """Passes a run's progress on to the host, and the host's interruption to the run.

    While it is entered, what was said last is said again every second, with the seconds since the phase began: an
    import, or one call of a large model, has nobody who could say how far it is.

    Args:
        host: shows it.
        node_id: on which node.
        text: what is going on at first; shown where it takes its time.
        latent_format: of previews, ComfyUI's name.
    """

    def __init__(self, host: Host, node_id: str | None, text: str, latent_format: str = "") -> None:
        self._host = host
        self._node_id = node_id
        self._latent_format = latent_format
        self._bar: ProgressBar | None = None
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._text = text
        self._began = self._said = time.monotonic()
        self.spoke = False

    def __enter__(self) -> NodeObserver:
        # ComfyUI knows by its context what is running
        self._ticker = threading.Thread(target=copy_context().run, args=(self._tick,), daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        assert self._ticker is not None
        self._ended.set()
        # what it says late would hide what is said next
        self._ticker.join()
        if failed is not None and (self.spoke or self._bar is not None):
            # the page leaves the last text on the node: it would go on to say that it samples
            self._host.show_text(self._node_id, f"stopped while {self._text}")
        if isinstance(error, ImportError) and error.name and not error.name.startswith(_PACK):
            raise _package_error(error) from error

    def check(self) -> None:
        self._host.check_interrupt()

    def stage(self, text: str) -> None:
        self._text = text
        self._began = self._said = time.monotonic()
        self.spoke = True
        self._host.show_text(self._node_id, text)

    def progress(self, text: str) -> None:
        self._text = text
        self._show()

    def step(self, done: int, total: int, x0: torch.Tensor) -> None:
        self._text = f"sampling: {done} of {total} steps"
        if self._bar is None:
            self._bar = self._host.progress(self._node_id, total, self._latent_format)
        self._bar.update(done, total, x0)

    def _show(self) -> None:
        self._said = time.monotonic()
        self.spoke = True
        seconds = self._said - self._began
        self._host.show_progress(self._node_id, f"{self._text} ({duration(seconds)})" if seconds >= 1 else self._text)

    def _tick(self) -> None:
        while not self._ended.wait(max(0.0, self._said + _SAY_AGAIN - time.monotonic())):
            if time.monotonic() - self._said >= _SAY_AGAIN:
                self._show()


def _package_error(error: ImportError) -> PackageError:
    """ComfyUI starts without this pack's requirements: nothing heavy is imported before a run."""
    name = (error.name or "").split(".")[0]
    missing = isinstance(error, ModuleNotFoundError)
    return PackageError(
        f"The Python package {name} is {'not installed' if missing else 'damaged or too old'} in ComfyUI's Python. "
        f"Install this pack's requirements: ComfyUI Manager does so when it installs or updates the pack; by hand, run "
        f"'python -m pip install -r requirements.txt' in the pack's folder, with the Python that runs ComfyUI. Then "
        f"start ComfyUI again."
    )
