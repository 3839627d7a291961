"""A part as ComfyUI's memory manager knows it."""

# ComfyUI's modules are not installed packages: the type checker cannot find them
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy import model_management
from comfy.model_patcher import ModelPatcher

from ...pipelines.machine.residence import EVERYTHING

if TYPE_CHECKING:
    import torch

    from ...pipelines.machine.residence import Residence


class ResidencePatcher(ModelPatcher):
    """Passes on to a part's residence what the manager asks of a model: how large, how much of it there, come, leave.

    Nothing of ComfyUI's own patching is used. Its dynamic loading reads ComfyUI's own layers only; beside such models
    this one is loaded and sent away as any plain one.
    """

    def __init__(self, residence: Residence) -> None:
        self._residence = residence
        device = model_management.get_torch_device()
        super().__init__(residence.module, device, model_management.unet_offload_device() if _own(device) else device)

    def model_size(self) -> int:
        return self._residence.size

    def loaded_size(self) -> int:
        return self._residence.there

    def lowvram_patch_counter(self) -> int:
        return 0

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self._residence.there else self.offload_device

    def model_dtype(self) -> None:
        """None of its tensors is cast."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
        if extra_memory < 0:
            return -self._residence.leave(-extra_memory)
        return self._residence.bring(extra_memory)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
        return self._residence.leave(memory_to_free)

    def detach(self, unpatch_all: bool = True) -> Any:
        # without it, the manager takes a model out of its list to put it in again at another place
        if unpatch_all:
            self._residence.leave(EVERYTHING)
        return self.model


def _own(device: torch.device) -> bool:
    """Whether the device has a memory that a part can leave for the computer's."""
    return device.type != "cpu"
