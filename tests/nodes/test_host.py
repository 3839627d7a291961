"""Which files the nodes list, inside ComfyUI and outside."""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.host.comfyui import ComfyHost
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.machine.plan import DeviceMemory

FILES = (
    "diffusion_models/dit.safetensors", "diffusion_models/lumina/q8.GGUF", "diffusion_models/notes.txt",
    "unet/q4.gguf", "unet/consolidated.00-of-01.pth",
    "checkpoints/whole.safetensors",
    "text_encoders/gemma.safetensors", "clip/gemma.gguf",
    "vae/ae.safetensors", "vae/ae.pkl",
    "loras/one.safetensors", "loras/two.sft", "loras/three.pt",
)  # fmt: skip
WEIGHTS = ["consolidated.00-of-01.pth", "dit.safetensors", "lumina/q8.GGUF", "q4.gguf", "whole.safetensors"]
# folder_paths.py of ComfyUI 0.28
FOLDERS = {"diffusion_models": ("unet", "diffusion_models"), "text_encoders": ("text_encoders", "clip")}
EXTENSIONS = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "models"


@pytest.fixture
def comfyui(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ComfyHost:
    """ComfyUI's host on a stand-in for its module of paths, whose lists leave GGUF out like the original's."""
    paths = ModuleType("folder_paths")

    def get_folder_paths(kind: str) -> list[str]:
        return [str(folder / name) for name in FOLDERS.get(kind, (kind,))]

    def get_filename_list(kind: str) -> list[str]:
        roots = [Path(root) for root in get_folder_paths(kind)]
        found = [(root, path) for root in roots for path in root.rglob("*")]
        return sorted(str(path.relative_to(root)) for root, path in found if path.suffix.lower() in EXTENSIONS)

    members = (get_folder_paths, get_filename_list)
    vars(paths).update({member.__name__: member for member in members}, supported_pt_extensions=EXTENSIONS)
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    return ComfyHost()


@pytest.fixture(params=["ComfyUI", "alone"])
def either(request: pytest.FixtureRequest, folder: Path, comfyui: ComfyHost):
    use_host(comfyui if request.param == "ComfyUI" else PlainHost(folder, folder, folder, "cpu"))
    yield
    use_host(None)


def test_every_container_is_listed_and_nothing_else(either):
    declared = NODE_CLASS_MAPPINGS["LoadAITKModel"].INPUT_TYPES()
    assert sorted(declared["required"]["weights"][0]) == sorted(["default", *WEIGHTS])
    assert declared["optional"]["text_encoder"][0] == ["default", "gemma.gguf", "gemma.safetensors"]
    assert declared["optional"]["vae"][0] == ["default", "ae.safetensors"]
    assert NODE_CLASS_MAPPINGS["ApplyAITKLoRA"].INPUT_TYPES()["required"]["lora_name"][0] == [
        "one.safetensors", "two.sft",
    ]  # fmt: skip


def test_what_is_listed_is_accepted_when_the_prompt_is_queued(either):
    validate = NODE_CLASS_MAPPINGS["LoadAITKModel"].VALIDATE_INPUTS
    for name in WEIGHTS:
        assert validate(weights=name) is True
    assert "below: 'diffusers', " in validate(weights="ae.safetensors")


def test_a_wrong_name_is_reported_once(host):
    """ComfyUI shows what this method says once for each of its parameters, and compares other inputs with lists."""
    for name, cls in NODE_CLASS_MAPPINGS.items():
        validate = getattr(cls, "VALIDATE_INPUTS", None)
        # a stack's says nothing
        assert validate is None or len(signature(validate).parameters) == 1 or name == "AITKLoRAStack"


def test_a_file_under_another_program_s_kind_is_found_once(comfyui: ComfyHost, folder: Path):
    (folder / "unet" / "dit.safetensors").write_bytes(b"")
    assert comfyui.model_files("diffusion_models", (".safetensors", ".gguf")).count("dit.safetensors") == 1


def test_a_node_s_text_goes_to_the_page_that_queued_it(monkeypatch: pytest.MonkeyPatch):
    sent = []
    server = SimpleNamespace(client_id="page", send_progress_text=lambda *values: sent.append(values))
    module = ModuleType("server")
    vars(module).update(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    ComfyHost().show_text("7", "sampling")
    ComfyHost().show_text(None, "nobody's")
    assert sent == [("sampling", "7", "page")]


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_name_that_leads_out_of_the_folders_is_refused_without_a_list(host, part):
    """ComfyUI leaves its lists aside where a value comes over a wire."""
    load = NODE_CLASS_MAPPINGS["LoadAITKModel"]
    values = {"text_encoder": "default", "vae": "default", part: "../diffusers/tiny/model_index.json"}
    with pytest.raises(FileError, match=f"{part} '../diffusers/tiny/model_index.json' is refused"):
        load().load("lumina2", "tiny", "auto", **values)


def test_a_device_s_memory_is_what_comfyui_can_give_up(monkeypatch: pytest.MonkeyPatch):
    """The names are those of ComfyUI 0.28's model_management."""
    gpu, other = torch.device("cuda", 0), torch.device("cuda", 1)
    loaded = [
        SimpleNamespace(device=gpu, model=object(), model_loaded_memory=lambda: 30),
        # its node's output is gone
        SimpleNamespace(device=gpu, model=None, model_loaded_memory=None),
        SimpleNamespace(device=other, model=object(), model_loaded_memory=lambda: 1000),
    ]
    management = ModuleType("comfy.model_management")
    vars(management).update(
        get_torch_device=lambda: gpu,
        get_total_memory=lambda device: 100,
        get_free_memory=lambda device: 60,
        current_loaded_models=loaded,
    )
    comfy = ModuleType("comfy")
    vars(comfy).update(model_management=management)
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    assert ComfyHost().device_memory() == DeviceMemory(total=100, free=90)
    vars(management).update(extra_reserved_memory=lambda: 25)
    assert ComfyHost().device_memory() == DeviceMemory(total=100, free=65)
    vars(management).update(get_torch_device=lambda: torch.device("cpu"))
    assert ComfyHost().device_memory() is None


def test_the_cpu_has_no_memory_of_its_own(host: PlainHost):
    assert host.device_memory() is None
