"""Loads the pack under test as ``comfyui_aitk``, and makes what many tests share."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# a slow machine is no fault
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# no test reaches out; set before huggingface_hub is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def _module(name: str, path: Path):
    """A module of this checkout by its path: sys.path stays as it is."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # before it runs: dataclasses look their module up
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tasks = _module("tasks", ROOT / "tasks.py")
# before torch is imported, by whatever starts the tests
for name, value in tasks.KERNELS.items():
    os.environ.setdefault(name, value)
tasks.load_pack()
sd_scripts_files = _module("sd_scripts", Path(__file__).parent / "sd_scripts.py")
# under names of their own, so that tests can import them
for name in (
    "chromium", "cpu_kernels", "editor_server", "engine_server", "hub_server", "javascript", "recorded_jobs",
    "rendering", "tiny_loras",
):  # fmt: skip
    _module(name, Path(__file__).parent / f"{name}.py")

from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint, make_lora  # noqa: E402
from comfyui_aitk.nodes.host import PlainHost, use_host  # noqa: E402
from comfyui_aitk.nodes.sampler import engine as node_engine  # noqa: E402
from comfyui_aitk.pipelines.engine.engine import Engine  # noqa: E402
from comfyui_aitk.pipelines.machine.machine import PlainMachine  # noqa: E402
from comfyui_aitk.pipelines.models import find_model  # noqa: E402
from comfyui_aitk.pipelines.weights import download  # noqa: E402
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint  # noqa: E402
from hub_server import PIECE, Hub, serving  # noqa: E402

_modules_set_aside = 0


@pytest.fixture(autouse=True)
def set_libraries_aside():
    """Keeps garbage collection from looking at the imported libraries again and again.

    An engine collects garbage whenever it loads a part, three times a picture. Among the objects of torch, diffusers
    and transformers, which never go, that takes 0.3 s a time: half of the suite's time.
    """
    global _modules_set_aside
    yield
    if len(sys.modules) > _modules_set_aside:
        gc.collect()
        gc.freeze()
        _modules_set_aside = len(sys.modules)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder in ComfyUI's layout with the checkpoint ``tiny`` and the LoRA ``tiny.safetensors``. Read only."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = make_checkpoint(folder / "diffusers" / "tiny")
    make_lora(folder / "loras" / "tiny.safetensors", checkpoint, trigger_word="t1ny")
    return folder


@pytest.fixture(scope="session")
def checkpoint(models: Path) -> Checkpoint:
    return Checkpoint.open(models / "diffusers" / "tiny", "tiny", find_model("lumina2").files)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint):
    """Tiny models by name, for files of LoRAs. Read only."""
    return sys.modules["tiny_loras"].tiny_models(tmp_path_factory.mktemp, checkpoint)


@pytest.fixture(scope="session")
def recorded_kernels() -> None:
    """For comparisons with recordings in bfloat16: skips where they say nothing."""
    if reason := sys.modules["cpu_kernels"].why_unlike_the_recordings():
        pytest.skip(reason)


@pytest.fixture
def engine() -> Engine:
    """An engine of its own, on the CPU: nothing is loaded."""
    return Engine(PlainMachine())


@pytest.fixture(scope="module")
def kept_engine():
    """For a module of many runs of a few models: what they load stays from test to test, as it does in ComfyUI."""
    node_engine.cache_clear()
    yield
    node_engine.cache_clear()


@pytest.fixture
def host(request, models: Path, tmp_path: Path):
    """The nodes' host for a test, with nothing loaded but by ``kept_engine``. Pictures: ``tmp_path / "output"``."""
    plain = PlainHost(models, tmp_path / "input", tmp_path / "output", "cpu")
    (tmp_path / "input").mkdir()
    use_host(plain)
    kept = "kept_engine" in request.fixturenames
    if not kept:
        node_engine.cache_clear()
    yield plain
    use_host(None)
    if not kept:
        node_engine.cache_clear()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty Hugging Face cache, in use for a test."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(checkpoint, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine that has the tiny checkpoint, and pickles beside it."""
    folder = tmp_path / "repo"
    shutil.copytree(checkpoint.source("transformer").folder, folder)
    (folder / "consolidated.00-of-01.pth").write_bytes(b"a pickle")
    (folder / "transformer" / "pytorch_model.bin").write_bytes(b"a pickle")
    with serving(folder) as server:
        yield server


@pytest.fixture
def hub_in_use(hub: Hub, hub_cache: Path, monkeypatch) -> Hub:
    """The same, where an empty cache fetches from: in pieces so small that even tiny files come in several."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr(download, "_PIECE", PIECE)
    return hub


@pytest.fixture(scope="session")
def sd_scripts_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded files of sd-scripts as a models folder. Read only."""
    return sd_scripts_files.make_models(tmp_path_factory.mktemp("sd-scripts"))


@pytest.fixture
def sd_scripts(host, sd_scripts_models: Path):
    """The nodes' host on these files; called with a case and a dtype it gives the graph."""
    use_host(PlainHost(sd_scripts_models, host.input, host.output, "cpu"))
    return sd_scripts_files.graph
