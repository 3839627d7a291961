"""Tiny models in every kind of file that users have, which a test may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import containers, flux2
from comfyui_aitk.headless.tiny.files import write_tensors
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.files.packed import dense
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.choice import Choice
from comfyui_aitk.pipelines.weights.choose import choose
from rendering import put_into_cache
from safetensors.torch import load_file


@dataclass(frozen=True)
class Models:
    """A models folder that a test may change."""

    folder: Path

    def chosen(self, model: str, weights: str, **files: str) -> dict[str, torch.Tensor]:
        """All tensors of a choice, by part and name."""
        choice = Choice(weights, files=files)
        checkpoint = choose(find_model(model).files, choice, lambda kind: [self.folder / kind])
        checkpoint.fingerprint()
        return {
            f"{source.component}.{name}": dense(value)
            for source in checkpoint.sources
            for name, value in source.read(source.tensor_infos())
        }

    def file(self, kind: str, name: str) -> Path:
        return self.folder / kind / name

    def rewrite(self, kind: str, name: str, change: Callable[[dict], dict], target: str = "") -> None:
        write_tensors(self.file(kind, target or name), change(load_file(self.file(kind, name))), {})


@pytest.fixture(scope="module")
def written(tmp_path_factory, models: Path) -> Path:
    """Lumina's and klein's tiny checkpoints as folders and as ComfyUI's files. Read only."""
    folder = tmp_path_factory.mktemp("rows")
    tiny = models / "diffusers" / "tiny"
    shutil.copytree(tiny, folder / "diffusers" / "lumina")
    containers.write_dit(folder / "diffusion_models" / "lumina.safetensors", tiny)
    containers.write_gemma2(folder / "text_encoders" / "gemma.safetensors", tiny)
    containers.write_ae(folder / "vae" / "lumina_ae.safetensors", tiny)
    klein = flux2.make_checkpoint(folder / "diffusers" / "klein", "flux2_klein_4b")
    shutil.copy(klein / "flux-2-klein-base-4b.safetensors", folder / "diffusion_models" / "klein.safetensors")
    flux2.write_text_encoder(folder / "text_encoders" / "encoder.safetensors", klein)
    shutil.copy(klein / "ae.safetensors", folder / "vae" / "ae.safetensors")
    (folder / "checkpoints").mkdir()
    return folder


@pytest.fixture
def own(written: Path, tmp_path: Path, host, hub_cache) -> Models:
    """A copy, with klein's tokenizer in the hub's cache."""
    folder = shutil.copytree(written, tmp_path / "models")
    tokenizer = folder / "diffusers" / "klein" / "tokenizer"
    put_into_cache(hub_cache, "Qwen/Qwen3-4B", {file.name: file for file in tokenizer.iterdir()})
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    return Models(folder)


@pytest.fixture(scope="module")
def expected(written: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of the two folders."""
    folder = Models(written)
    return {
        "lumina2": folder.chosen("lumina2", "lumina"),
        "flux2_klein_4b": folder.chosen("flux2_klein_4b", "klein"),
    }
