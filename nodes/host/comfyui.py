"""ComfyUI as the host: its model folders, progress bar, previews, interruption and memory manager.

No other module of this pack imports ComfyUI.
"""

# ComfyUI's modules are not installed packages: the type checker cannot find them
# pyright: reportMissingImports=false
from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import AITKError, FileError
from ...pipelines.machine.plan import DeviceMemory
from ...pipelines.machine.residence import EVERYTHING
from ...pipelines.pictures.saving import reason
from ...pipelines.weights.untrusted_names import check_name, list_files, list_folders_with
from ...pipelines.words import cut, printable, shown
from .job_roots import KIND, roots_of_environment
from .protocol import REPLAY_FOLDER, ProgressBar, SaveTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ...pipelines.machine.residence import Residence
    from .protocol import Answer


_LONGEST_TEXT = 4000  # characters on a node


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

    def input_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_input_directory())

    def page_folder(self) -> Path | None:
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    def job_roots(self) -> list[Path]:
        import folder_paths

        # a kind of model that ComfyUI has only where the user's extra_model_paths.yaml names it
        extra = folder_paths.get_folder_paths(KIND) if KIND in folder_paths.folder_names_and_paths else []
        return [self.input_folder(), *roots_of_environment(), *map(Path, extra)]

    def replay_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory()) / REPLAY_FOLDER

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        import folder_paths

        check_name(prefix, "filename_prefix")
        try:
            folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
                prefix, folder_paths.get_output_directory(), width, height
            )
        except OSError as error:
            raise FileError(f"The output folder for {shown(prefix)} cannot be used: {reason(error)}.") from error
        except Exception as error:
            # its only other one, whose text holds the whole paths
            raise FileError(
                f"filename_prefix {shown(prefix)} is refused: it leads out of the output folder."
            ) from error
        return SaveTarget(Path(folder), stem, counter, subfolder)

    def metadata_enabled(self) -> bool:
        from comfy.cli_args import args

        return not args.disable_metadata

    def embeddings_folder(self) -> Path | None:
        import folder_paths

        # ComfyUI's server hands out no file of a folder that begins so
        return Path(folder_paths.get_user_directory()) / "__aitk" / "embeddings"

    def maps_files(self) -> bool:
        from comfy.cli_args import args

        return not getattr(args, "disable_mmap", False)

    def device(self) -> str:
        from comfy import model_management

        return str(model_management.get_torch_device())

    def admit(self, guest: Residence, beside: int) -> None:
        from comfy import model_management

        # the manager forgets whom nobody else holds
        if guest.ticket is None:
            guest.ticket = _patcher(guest)
        model_management.load_models_gpu([guest.ticket], memory_required=beside)

    def make_room(self, size: float) -> None:
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

    def processes(self) -> int:
        """ComfyUI runs a prompt in one."""
        return 1

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
        # html's table of entities is a twentieth of what ComfyUI's start would wait for
        import html

        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if node_id is not None and server is not None:
            # the page takes it for HTML; a prompt's flags and a file's name are other people's
            text = html.escape(cut(printable(text), _LONGEST_TEXT), quote=False)
            # to the page that queued the prompt: others have other nodes under the same id
            server.send_progress_text(text, node_id, server.client_id)

    def show_progress(self, node_id: str | None, text: str) -> None:
        self.show_text(node_id, text)


def serve_answers(answers: Mapping[str, Answer]) -> None:
    """Adds GET routes to ComfyUI's server, if it is one: the nodes may also be loaded without."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        add_routes(server.routes, answers)


def add_routes(routes: Any, answers: Mapping[str, Answer]) -> None:
    """Adds a GET route for each path; what an answer refuses is told in words, as ``error``.

    That is an answer too: another status would stand in the browser's console as a fault of the page.

    Args:
        routes: aiohttp's table of them.
        answers: path -> answer.
    """
    for path, answer in answers.items():
        routes.get(path)(partial(_answered, answer))


async def _answered(answer: Answer, request: Any) -> Any:
    import asyncio

    from aiohttp import web

    try:
        # files are read: the server goes on meanwhile
        return web.json_response(await asyncio.to_thread(answer, dict(request.query)))
    except AITKError as error:
        return web.json_response({"error": str(error)})


class _PartAnswers:
    """What ComfyUI's memory manager asks of a model, answered for a part: how large, how much of it there, come, leave.

    Nothing of ComfyUI's own patching is used. Its dynamic loading reads ComfyUI's own layers only; beside models that
    are loaded so, this one is loaded and sent away as any plain one.
    """

    residence: Residence
    load_device: Any
    offload_device: Any
    model: Any

    def model_size(self) -> int:
        return self.residence.size

    def loaded_size(self) -> int:
        return self.residence.there

    def lowvram_patch_counter(self) -> int:
        return 0

    def current_loaded_device(self) -> Any:
        return self.load_device if self.residence.there else self.offload_device

    def model_dtype(self) -> None:
        """None of its tensors is cast."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
        return -self.residence.leave(-extra_memory) if extra_memory < 0 else self.residence.bring(extra_memory)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
        return self.residence.leave(memory_to_free)

    def detach(self, unpatch_all: bool = True) -> Any:
        # without it, the manager takes a model out of its list to put it in again at another place
        if unpatch_all:
            self.residence.leave(EVERYTHING)
        return self.model


def _patcher(residence: Residence) -> Any:
    """A part as ComfyUI's memory manager knows it."""
    from comfy import model_management

    device = model_management.get_torch_device()
    home = device if residence.at_home else model_management.unet_offload_device()
    made = _patcher_class()(residence.module, device, home)
    made.residence = residence
    return made


@cache
def _patcher_class() -> type[Any]:
    from comfy.model_patcher import ModelPatcher

    return type("PartPatcher", (_PartAnswers, ModelPatcher), {})
