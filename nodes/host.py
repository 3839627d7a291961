"""The only door between the nodes and whatever runs them.

Inside ComfyUI that is ComfyUI's own model folders, progress bar, previews, interruption and memory manager; elsewhere
(``tasks.py``, tests) a plain stand-in with the same methods. No other module of this pack imports ComfyUI.
"""

# ComfyUI's modules are not installed packages: the type checker cannot find them
# pyright: reportMissingImports=false
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..pipelines.errors import FileError, InputError
from ..pipelines.folders import check_name, list_files, list_folders_with
from ..pipelines.plan import DeviceMemory

if TYPE_CHECKING:
    import torch


# ComfyUI's model kinds that have an older folder beside the one of their name, which users still fill
_OLDER_FOLDERS = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}


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

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        """The next free file name for a picture of that size (pixels) in the output folder."""
        ...

    def metadata_enabled(self) -> bool:
        """False where the user has switched off metadata in saved pictures."""
        ...

    def device(self) -> str:
        """The compute device, e.g. ``"cuda:0"`` or ``"cpu"``."""
        ...

    def make_room(self, size: int) -> None:
        """Asks for ``size`` free bytes on the compute device before something is put there."""
        ...

    def device_memory(self) -> DeviceMemory | None:
        """The compute device's memory; None where it has none of its own, or nothing is known of it."""
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


class _ComfyBar:
    def __init__(self, bar: Any, previewer: Any) -> None:
        self._bar = bar
        self._previewer = previewer

    def update(self, done: int, total: int, x0: torch.Tensor | None) -> None:
        preview = None
        if self._previewer is not None and x0 is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", x0)
        self._bar.update_absolute(done, total, preview)


class ComfyHost:
    """ComfyUI itself. Its modules are imported when they are used: they are not there when the pack is run alone."""

    def model_roots(self, kind: str) -> list[Path]:
        import folder_paths

        return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]

    def model_files(self, kind: str, suffixes: tuple[str, ...]) -> list[str]:
        import folder_paths

        # ComfyUI keeps this list as long as the folders do not change
        names = [name.replace(os.sep, "/") for name in folder_paths.get_filename_list(kind)]
        names = [name for name in names if name.lower().endswith(suffixes)]
        # it has only what ComfyUI's own loaders read: no GGUF
        left_out = [suffix for suffix in suffixes if suffix not in folder_paths.supported_pt_extensions]
        return sorted({*names, *list_files(self.model_roots(kind), left_out)}) if left_out else names

    def model_folders(self, kind: str, marker: str) -> list[str]:
        return list_folders_with(self.model_roots(kind), marker)

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        import folder_paths

        check_name(prefix, "filename_prefix")
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )
        return SaveTarget(Path(folder), stem, counter, subfolder)

    def metadata_enabled(self) -> bool:
        from comfy.cli_args import args

        return not args.disable_metadata

    def device(self) -> str:
        from comfy import model_management

        return str(model_management.get_torch_device())

    def make_room(self, size: int) -> None:
        from comfy import model_management

        model_management.free_memory(size, model_management.get_torch_device())

    def device_memory(self) -> DeviceMemory | None:
        from comfy import model_management

        device = model_management.get_torch_device()
        # of DirectML's devices ComfyUI knows no sizes
        if device.type in ("cpu", "mps") or getattr(model_management, "directml_enabled", False):
            return None
        # ComfyUI's models leave when room is asked for; the user's --reserve-vram is not touched
        loaded = [found for found in model_management.current_loaded_models if found.device == device]
        evictable = sum(found.model_loaded_memory() for found in loaded if found.model is not None)
        reserve = getattr(model_management, "extra_reserved_memory", int)()
        total = int(model_management.get_total_memory(device))
        free = int(model_management.get_free_memory(device) + evictable - reserve)
        return DeviceMemory(total, max(0, min(total, free)))

    def check_interrupt(self) -> None:
        from comfy import model_management

        model_management.throw_exception_if_processing_interrupted()

    def progress(self, node_id: str | None, total: int, latent_format: str) -> ProgressBar:
        import latent_preview
        from comfy import latent_formats, model_management, utils

        known = getattr(latent_formats, latent_format, None)
        previewer = known and latent_preview.get_previewer(model_management.get_torch_device(), known())
        return _ComfyBar(utils.ProgressBar(total), previewer)

    def show_text(self, node_id: str | None, text: str) -> None:
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if node_id is not None and server is not None:
            # to the page that queued the prompt: others have other nodes under the same id
            server.send_progress_text(text, node_id, server.client_id)


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
    """

    def __init__(
        self,
        models: Path,
        input: Path,
        output: Path,
        device: str | None = None,
        extra: Mapping[str, Path] | None = None,
    ) -> None:
        self.models = models
        self.input = input
        self.output = output
        self._device = device
        self._device_checked = False
        self._extra = dict(extra or {})

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
        folder = (self.output / relative.parent).resolve()
        if not folder.is_relative_to(self.output.resolve()):
            raise FileError(f"filename_prefix {prefix!r} is refused: it leads out of the output folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"The output folder for {prefix[:80]!r} cannot be made: {error.strerror}.") from error
        stem = relative.name
        taken = [0]
        for path in folder.glob("*"):
            if path.name.startswith(stem + "_"):
                digits = path.name[len(stem) + 1 :].split(".")[0].split("_")[0]
                taken.append(int(digits) if digits.isdecimal() else 0)
        subfolder = "" if relative.parent.as_posix() == "." else relative.parent.as_posix()
        return SaveTarget(folder, stem, max(taken) + 1, subfolder)

    def metadata_enabled(self) -> bool:
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
                reason = str(error).splitlines()[0]
                raise InputError(f"Device {self._device!r} cannot be used: {reason}") from error
            self._device_checked = True
        return self._device

    def make_room(self, size: int) -> None:
        """Nothing else is on the device."""

    def device_memory(self) -> DeviceMemory | None:
        import torch

        device = self.device()
        backend: Any = getattr(torch, torch.device(device).type, None)
        if not hasattr(backend, "mem_get_info"):
            return None
        free, total = backend.mem_get_info(device)
        # torch keeps what it freed, for this process alone
        return DeviceMemory(total, free + backend.memory_reserved(device) - backend.memory_allocated(device))

    def check_interrupt(self) -> None:
        """Ctrl-C raises by itself."""

    def progress(self, node_id: str | None, total: int, latent_format: str) -> ProgressBar:
        stream = sys.stderr

        def write(text: str) -> None:
            stream.write(text)
            stream.flush()

        return _TerminalBar(f"node {node_id}" if node_id else "sampling", write, stream.isatty())

    def show_text(self, node_id: str | None, text: str) -> None:
        where = f"node {node_id}: " if node_id else ""
        sys.stderr.write("".join(f"{where}{line}\n" for line in text.splitlines()))


_host: Host | None = None


def current_host() -> Host:
    """The host in use: ComfyUI where its modules are loaded, else what :func:`use_host` was given."""
    global _host
    if _host is None:
        if "folder_paths" in sys.modules:
            _host = ComfyHost()
        else:
            here = Path.cwd()
            _host = PlainHost(here / "models", here / "input", here / "output")
    return _host


def use_host(host: Host | None) -> None:
    """Sets the host for this process; ``None`` goes back to finding it out."""
    global _host
    _host = host
