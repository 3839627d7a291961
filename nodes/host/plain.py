"""The host outside of ComfyUI: folders from arguments, progress on the terminal, Ctrl-C to stop."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import FileError, InputError
from ...pipelines.machine.guests import Guests
from ...pipelines.machine.plan import DeviceMemory
from ...pipelines.pictures.saving import reason
from ...pipelines.weights.untrusted_names import check_name, list_files, list_folders_with
from ...pipelines.words import cut, printable, shown
from .job_roots import roots_of_environment
from .protocol import REPLAY_FOLDER, ProgressBar, SaveTarget

if TYPE_CHECKING:
    import torch

    from ...pipelines.machine.residence import Residence

# ComfyUI's model kinds that have an older folder beside the one of their name, which users still fill
_OLDER_FOLDERS = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}
_LONGEST_COUNTER = 15  # digits
_LOG_EVERY = 10.0  # seconds between two lines of progress where they are not written over


class _TerminalBar:
    """A line that is written over on a terminal, and one line per step elsewhere."""

    def __init__(self, label: str, write: Callable[[str], None], live: bool) -> None:
        self._label = label
        self._write = write
        self._live = live
        self._start = time.monotonic()

    def update(self, done: int, total: int, x0: torch.Tensor | None) -> None:
        line = f"{self._label}: step {done}/{total}, {time.monotonic() - self._start:.1f} s"
        if self._live:
            self._write("\r" + line + ("\n" if done >= total else ""))
        else:
            self._write(line + "\n")


class PlainHost:
    """Folders from arguments, progress on the terminal, Ctrl-C to stop.

    Args:
        models: folder with ComfyUI's layout (``diffusers``, ``loras``, ...).
        input: folder of the pictures that a workflow loads.
        output: folder of the pictures that it saves.
        device: compute device; by default CUDA, else Apple's MPS, else the CPU.
        extra: one more file or folder of a model kind, from anywhere; what lies beside it is not listed.
        processes: how many processes render each picture together.
        embeddings: folder for encoded texts, which later starts need not encode again; by default none are kept.
    """

    def __init__(
        self,
        models: Path,
        input: Path,
        output: Path,
        device: str | None = None,
        extra: Mapping[str, Path] | None = None,
        processes: int = 1,
        embeddings: Path | None = None,
    ) -> None:
        self.models = models
        self.input = input
        self.output = output
        self.embeddings = embeddings
        self._device = device
        self._device_checked = False
        self._extra = dict(extra or {})
        self._guests = Guests()
        self._processes = processes
        self._logged = time.monotonic()
        # the length of a line that is to be written over
        self._passing = 0

    def model_roots(self, kind: str) -> list[Path]:
        extra = self._extra.get(kind)
        return self._folders(kind) if extra is None else [*self._folders(kind), extra.parent]

    def model_files(self, kind: str, suffixes: tuple[str, ...]) -> list[str]:
        return self._with_extra(kind, list_files(self._folders(kind), suffixes))

    def model_folders(self, kind: str, marker: str) -> list[str]:
        return self._with_extra(kind, list_folders_with(self._folders(kind), marker))

    def _folders(self, kind: str) -> list[Path]:
        return [self.models / folder for folder in (kind, *_OLDER_FOLDERS.get(kind, ()))]

    def _with_extra(self, kind: str, names: list[str]) -> list[str]:
        extra = [self._extra[kind].name] if kind in self._extra else []
        return list(dict.fromkeys([*names, *extra]))

    def input_folder(self) -> Path:
        return self.input

    def page_folder(self) -> Path | None:
        return None

    def job_roots(self) -> list[Path]:
        return [self.input, *roots_of_environment()]

    def replay_folder(self) -> Path:
        return self.output / REPLAY_FOLDER

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        now = time.localtime()
        values = {
            "width": str(width),
            "height": str(height),
            "year": f"{now.tm_year}",
            "month": f"{now.tm_mon:02}",
            "day": f"{now.tm_mday:02}",
            "hour": f"{now.tm_hour:02}",
            "minute": f"{now.tm_min:02}",
            "second": f"{now.tm_sec:02}",
        }
        for name, value in values.items():
            prefix = prefix.replace(f"%{name}%", value)
        relative = check_name(prefix, "filename_prefix")
        try:
            folder = (self.output / relative.parent).resolve()
            if not folder.is_relative_to(self.output.resolve()):
                raise FileError(f"filename_prefix {shown(prefix)} is refused: it leads out of the output folder.")
            folder.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in folder.iterdir()]
        except (OSError, RuntimeError) as error:
            why = reason(error) if isinstance(error, OSError) else "its links go round in a circle"
            raise FileError(f"The output folder for {shown(prefix)} cannot be made: {why}.") from error
        stem = relative.name
        taken = [0]
        for name in names:
            if name.startswith(stem + "_"):
                digits = name[len(stem) + 1 :].split(".")[0].split("_")[0]
                # no counter of ours or of ComfyUI's is longer
                taken.append(int(digits) if digits.isdecimal() and len(digits) <= _LONGEST_COUNTER else 0)
        subfolder = "" if relative.parent.as_posix() == "." else relative.parent.as_posix()
        return SaveTarget(folder, stem, max(taken) + 1, subfolder)

    def metadata_enabled(self) -> bool:
        return True

    def embeddings_folder(self) -> Path | None:
        return self.embeddings

    def maps_files(self) -> bool:
        return True

    def device(self) -> str:
        if self._device is None:
            import torch

            if torch.cuda.is_available():
                self._device = "cuda"
            else:
                self._device = "mps" if torch.backends.mps.is_available() else "cpu"
        elif not self._device_checked:
            import torch

            try:
                torch.empty(1, device=self._device)
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"Device {shown(self._device)} cannot be used: this computer or its PyTorch has none of that name. "
                    "Choose another one, e.g. cpu."
                ) from error
            self._device_checked = True
        return self._device

    def admit(self, guest: Residence, beside: int) -> None:
        self._guests.admit(guest, beside, self.device_memory())

    def make_room(self, size: float) -> None:
        self._guests.make_room(size)

    def device_memory(self) -> DeviceMemory | None:
        import torch

        device = self.device()
        backend: Any = getattr(torch, torch.device(device).type, None)
        if not hasattr(backend, "mem_get_info"):
            return None
        free, total = backend.mem_get_info(device)
        # torch keeps what it freed, for this process alone
        kept = backend.memory_reserved(device) - backend.memory_allocated(device)
        return DeviceMemory(total, free + kept + self._guests.there)

    def processes(self) -> int:
        return self._processes

    def check_interrupt(self) -> None:
        """Ctrl-C raises by itself."""

    def progress(self, node_id: str | None, total: int, latent_format: str) -> ProgressBar:
        stream = sys.stderr

        def write(text: str) -> None:
            stream.write(text)
            stream.flush()

        label = printable(f"node {cut(node_id)}") if node_id else "sampling"
        return _TerminalBar(label, write, stream.isatty())

    def show_text(self, node_id: str | None, text: str) -> None:
        where, over = f"node {cut(node_id)}: " if node_id else "", self._wiped()
        self._logged = time.monotonic()
        sys.stderr.write(over + "".join(f"{printable(where + line)}\n" for line in printable(text).splitlines()))

    def show_progress(self, node_id: str | None, text: str) -> None:
        if not sys.stderr.isatty():
            if time.monotonic() - self._logged >= _LOG_EVERY:
                self.show_text(node_id, text)
            return
        line = printable(f"node {cut(node_id)}: {text}" if node_id else text).replace("\n", " ")
        # a line that wraps cannot be written over
        line = cut(line, shutil.get_terminal_size().columns - 1)
        sys.stderr.write(self._wiped() + line)
        sys.stderr.flush()
        self._passing = len(line)

    def _wiped(self) -> str:
        wiped, self._passing = "\r" + " " * self._passing + "\r" if self._passing else "", 0
        return wiped
