"""Tiny models, files for them, and what a file adds to each parameter: what the tests of LoRA files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from comfyui_aitk.headless.tiny import flux2 as tiny_flux2
from comfyui_aitk.headless.tiny import krea2 as tiny_krea2
from comfyui_aitk.headless.tiny import omnigen2 as tiny_omnigen2
from comfyui_aitk.headless.tiny import qwen_image as tiny_qwen_image
from comfyui_aitk.headless.tiny import z_image as tiny_z_image
from comfyui_aitk.pipelines.lora.file import LoraFile, open_lora, read_lora
from comfyui_aitk.pipelines.lora.kinds import Adapter
from comfyui_aitk.pipelines.lora.kinds.workspace import Workspace
from comfyui_aitk.pipelines.lora.layers import LoraLayer
from comfyui_aitk.pipelines.lora.names import Names, names_of
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """A tiny model, and files for it."""

    model: str
    checkpoint: Checkpoint
    folder: Path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.checkpoint.source("transformer").tensor_infos().items()}

    def open(self, tensors: Tensors) -> LoraFile:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.safetensors"
        save_file(tensors, path)
        return self.open_path(path)

    def open_path(self, path: Path) -> LoraFile:
        return open_lora(path, "x", find_model(self.model), self.checkpoint)

    @property
    def names(self) -> Names:
        return names_of(self.model, self.checkpoint)

    def read(self, tensors: Tensors, part: str = "transformer") -> dict[LoraLayer, Adapter]:
        return read_lora(self.open(tensors), part)

    def changes(self, tensors: Tensors, part: str = "transformer") -> Tensors:
        """parameter -> the sum of what the file adds to it."""
        found: Tensors = {}
        shapes = {name: info.shape for name, info in self.checkpoint.source(part).tensor_infos().items()}
        for layer, adapter in self.read(tensors, part).items():
            own = found.setdefault(layer.parameter, torch.zeros(shapes[layer.parameter]))
            rows = own[slice(*(layer.into or (None,)))]
            rows.copy_(adapter.merge(rows, 1.0, Workspace("cpu")))
        return found


def tiny_models(folder: Callable[[str], Path], lumina2: Checkpoint) -> Callable[[str], Tiny]:
    """Models by name, made when they are asked for; ``folder`` makes an empty one of about that name."""
    makers = {
        "flux2": lambda where: tiny_flux2.make_checkpoint(where, "flux2"),
        "flux2_klein_4b": lambda where: tiny_flux2.make_checkpoint(where, "flux2_klein_4b"),
        "zimage": tiny_z_image.make_checkpoint,
        "omnigen2": tiny_omnigen2.make_checkpoint,
        "krea2": tiny_krea2.make_checkpoint,
        "qwen_image": tiny_qwen_image.make_checkpoint,
    }
    made: dict[str, Tiny] = {}

    def get(model: str) -> Tiny:
        if model not in made:
            files = folder("files")
            if model == "lumina2":
                made[model] = Tiny(model, lumina2, files)
            else:
                where = makers[model](folder("models") / "tiny")
                made[model] = Tiny(model, Checkpoint.open(where, "tiny", find_model(model).files), files)
        return made[model]

    return get


def matrices(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of rank 2."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, columns, generator=random), torch.randn(rows, 2, generator=random)


def pair(name: str, rows: int, columns: int, ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")) -> Tensors:
    down, up = matrices(rows, columns)
    return {name + ends[0]: down, name + ends[1]: up}
