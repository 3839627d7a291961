"""What the nodes need of the program that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ...pipelines.machine.plan import DeviceMemory
    from ...pipelines.machine.residence import Residence

# of the editor's questions: the query's values -> what JSON can hold
Answer = Callable[[Mapping[str, str]], dict[str, Any]]
REPLAY_FOLDER = "aitk_replay"  # below the output folder


@dataclass(frozen=True)
class SaveTarget:
    """Where a picture goes: ``folder / f"{stem}_{counter:05}_.{extension}"``, counted on in a batch."""

    folder: Path
    stem: str
    counter: int
    subfolder: str
    """``folder`` relative to the output folder, ``/``-separated, empty at its top."""


class ProgressBar(Protocol):
    """One node's progress. ``update`` raises when the user has asked to stop."""

    def update(self, done: int, total: int, x0: torch.Tensor | None) -> None: ...


class Host(Protocol):
    """What the nodes need of the program that runs them."""

    def model_roots(self, kind: str) -> list[Path]:
        """Folders of one of ComfyUI's model kinds: ``diffusers``, ``loras``, ``vae``, ..."""
        ...

    def model_files(self, kind: str, suffixes: tuple[str, ...]) -> list[str]:
        """Relative, ``/``-separated names of the files of a model kind whose name ends in one of ``suffixes``."""
        ...

    def model_folders(self, kind: str, marker: str) -> list[str]:
        """Relative, ``/``-separated names of the folders of a model kind that hold a file called ``marker``."""
        ...

    def input_folder(self) -> Path:
        """Where the pictures lie that a workflow may load."""
        ...

    def page_folder(self) -> Path | None:
        """Where pictures lie that only the page shows, until the program ends; None where there is no page."""
        ...

    def job_roots(self) -> list[Path]:
        """Folders below which a workflow may name training jobs: the input folder, and what the user configured."""
        ...

    def replay_folder(self) -> Path:
        """Where the finished cells of replays are kept."""
        ...

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        """The next free file name for a picture of that size (pixels) in the output folder."""
        ...

    def metadata_enabled(self) -> bool:
        """False where the user has switched off metadata in saved pictures."""
        ...

    def embeddings_folder(self) -> Path | None:
        """Where encoded texts are kept from one start of the program to the next; None is nowhere."""
        ...

    def maps_files(self) -> bool:
        """Whether weights may lie in their files' own pages; else files are read into memory."""
        ...

    def device(self) -> str:
        """The compute device, e.g. ``"cuda:0"`` or ``"cpu"``."""
        ...

    def admit(self, guest: Residence, beside: int) -> None:
        """Brings a part to the compute device; see :class:`..pipelines.machine.machine.Machine`."""
        ...

    def make_room(self, size: float) -> None:
        """Asks for ``size`` free bytes on the compute device."""
        ...

    def device_memory(self) -> DeviceMemory | None:
        """The compute device's memory; None where it has none of its own, or nothing is known of it."""
        ...

    def processes(self) -> int:
        """How many processes, each with a device of its own, render each picture together."""
        ...

    def check_interrupt(self) -> None:
        """Raises when the user has asked to stop."""
        ...

    def progress(self, node_id: str | None, total: int, latent_format: str) -> ProgressBar:
        """A bar of ``total`` steps; ``latent_format`` is ComfyUI's name of the latent space that previews show."""
        ...

    def show_text(self, node_id: str | None, text: str) -> None:
        """Shows ``text`` on the node."""
        ...

    def show_progress(self, node_id: str | None, text: str) -> None:
        """The same of a text that another one will soon replace; called from any thread."""
        ...
