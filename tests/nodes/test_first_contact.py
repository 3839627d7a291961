"""A fresh ComfyUI with nothing downloaded: what every list shows, and what running says."""

from __future__ import annotations

import pytest
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.observer import NodeObserver
from comfyui_aitk.pipelines.errors import AITKError, PackageError
from comfyui_aitk.pipelines.models import DEFAULT_MODEL

EMPTY = "no file in 'loras' yet"
ADVICE = ("models/loras", "press R", "choose it", "bypass this node")
# other people's files, not models
OTHERS = {"AITKTrainingJob"}


@pytest.fixture
def fresh(host, tmp_path):
    """ComfyUI's folders as they are after its installation."""
    for kind in ("diffusers", "diffusion_models", "checkpoints", "text_encoders", "vae", "loras"):
        (tmp_path / "fresh" / kind).mkdir(parents=True)
        (tmp_path / "fresh" / kind / f"put_{kind}_here").touch()
    use_host(PlainHost(tmp_path / "fresh", host.input, host.output, "cpu"))
    return tmp_path / "fresh"


def _lists(name: str) -> dict[str, list]:
    declared = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    inputs = {**declared.get("required", {}), **declared.get("optional", {})}
    return {label: kind for label, (kind, _) in inputs.items() if isinstance(kind, list)}


def test_every_list_shows_something_that_can_be_read(fresh):
    for name in NODE_CLASS_MAPPINGS.keys() - OTHERS:
        for label, choices in _lists(name).items():
            assert choices, f"{name}.{label} shows 'undefined'"
            assert all(isinstance(choice, str) and choice for choice in choices)
    assert _lists("ApplyAITKLoRA")["lora_name"] == [EMPTY]
    assert _lists("AITKTrainingAdapter")["adapter_name"] == _lists("AITKRecoveryAdapter")["adapter_name"] == [EMPTY]
    assert _lists("LoadAITKModel")["weights"] == ["default"]


@pytest.mark.parametrize("name", ["ApplyAITKLoRA", "AITKTrainingAdapter", "AITKRecoveryAdapter"])
def test_running_says_where_files_go(fresh, name):
    said = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS(EMPTY)
    assert isinstance(said, str)
    assert [part for part in ADVICE if part not in said] == []
    assert str(fresh) not in said


def test_a_file_that_came_since_is_the_list(fresh, models):
    (fresh / "loras" / "mine.safetensors").hardlink_to(models / "loras" / "tiny.safetensors")
    assert _lists("ApplyAITKLoRA")["lora_name"] == ["mine.safetensors"]
    assert NODE_CLASS_MAPPINGS["ApplyAITKLoRA"].VALIDATE_INPUTS("mine.safetensors") is True


def test_without_weights_the_first_run_wants_the_model_s_own_from_the_hub(fresh, hub_cache):
    """Offline it names the repository; online it downloads, which tests/pipelines/test_download.py watches."""
    with pytest.raises(AITKError, match="Alpha-VLLM/Lumina-Image-2"):
        NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(DEFAULT_MODEL, "default", "auto")


def _imports(host, error: ImportError) -> None:
    with NodeObserver(host, None, "importing"):
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("no diffusers", name="diffusers.models"),
            "diffusers is not installed in ComfyUI's Python",
        ),
        (ImportError("cannot import name", name="diffusers"), "diffusers is damaged or too old"),
    ],
)
def test_a_run_without_the_requirements_says_how_to_install_them(host, error, said):
    with pytest.raises(PackageError, match=f"{said}.*-m pip install -r requirements.txt"):
        _imports(host, error)


@pytest.mark.parametrize("name", ["comfyui_aitk.nodes.lacking", None])
def test_a_mistake_of_the_pack_s_own_is_no_missing_package(host, name):
    with pytest.raises(ImportError, match="cannot import"):
        _imports(host, ImportError("cannot import", name=name))
