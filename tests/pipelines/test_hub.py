"""Hub repositories: the cache, downloads, and what is said when they cannot be had.

A small hub of our own speaks the API over loopback; huggingface_hub itself runs in a child process, since it reads its
settings when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.errors import FileError, HubError, InputError
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.hub import fetch_file, open_repo
from hub_server import COMMIT, REPO

ROOT = Path(__file__).resolve().parents[2]
MODEL = find_model("lumina2")

CHILD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tasks", {str(ROOT / "tasks.py")!r})
tasks = importlib.util.module_from_spec(spec); spec.loader.exec_module(tasks); tasks.load_pack()
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.weights.hub import open_repo
from comfyui_aitk.pipelines.models import find_model
try:
    print(open_repo(sys.argv[1], find_model("lumina2").files)["transformer"].name)
except AITKError as error:
    print(type(error).__name__ + ": " + str(error))
"""


def _open(repo: str, cache: Path, endpoint: str, **environment: str) -> str:
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", CHILD, repo],
        env={**os.environ, **settings, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_a_repository_is_downloaded_once_then_read_from_the_cache(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert _open(REPO, tmp_path / "cache", endpoint) == f"{REPO}@{COMMIT[:12]}"
    assert "transformer/diffusion_pytorch_model.safetensors" in hub.fetched
    assert not [name for name in hub.fetched if name.endswith((".pth", ".bin"))], "pickles are not even downloaded"

    hub.fetched.clear()
    assert _open(REPO, tmp_path / "cache", endpoint, HF_HUB_OFFLINE="1") == f"{REPO}@{COMMIT[:12]}"
    assert not hub.fetched

    # a download that was cut off: one file is not there, and only that one is fetched
    for name in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/tokenizer.json"):
        hub.fetched.clear()
        (lost,) = (tmp_path / "cache").glob(f"hub/*/snapshots/*/{name}")
        lost.resolve().unlink()
        lost.unlink(missing_ok=True)
        assert "HF_HUB_OFFLINE forbids downloads" in _open(REPO, tmp_path / "cache", endpoint, HF_HUB_OFFLINE="1")
        assert _open(REPO, tmp_path / "cache", endpoint) == f"{REPO}@{COMMIT[:12]}"
        assert set(hub.fetched) == {name}


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("owner/gated", "HubError: 'owner/gated' is gated: its licence must be accepted"),
        ("owner/nothing", "HubError: There is no repository 'owner/nothing' on the hub, or it is private"),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, repo, message):
    answer = _open(repo, tmp_path / "cache", f"http://127.0.0.1:{hub.server_port}", HF_TOKEN="hf_secret")
    assert answer.startswith(message)
    assert "secret" not in answer


def test_a_hub_that_cannot_be_reached(tmp_path):
    answer = _open(REPO, tmp_path / "cache", "http://127.0.0.1:9")
    assert answer.startswith("HubError: 'owner/tiny' is not in the cache, and the hub cannot be reached. Connect to")


def test_offline_and_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"'owner/tiny' is not \(wholly\) in the cache, and HF_HUB_OFFLINE forbids"):
        open_repo(REPO, MODEL.files)


@pytest.mark.parametrize(
    "repo", ["tiny", "owner/tiny/more", "../tiny", "/owner/tiny", "owner/..", "a b/c", "https://x/y"]
)
def test_names_that_are_no_repository(repo):
    with pytest.raises(InputError, match="is no Hugging Face repository id"):
        open_repo(repo, MODEL.files)


def _cache(folder: Path, commit: str, whole: Path, *left_out: str) -> Path:
    """A snapshot of a cache that does not say which commit the main branch is."""
    home = folder / "models--owner--tiny" / "snapshots" / commit
    for file in whole.rglob("*"):
        name = file.relative_to(whole)
        if file.is_file() and name.as_posix() not in left_out:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(file)
    return home


def test_a_cache_that_does_not_know_its_main_branch_is_used(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    whole = checkpoint.source("transformer").folder
    _cache(tmp_path, "a" * 40, whole)
    os.utime(tmp_path / "models--owner--tiny" / "snapshots" / ("a" * 40), (1, 1))
    assert open_repo(REPO, MODEL.files)["vae"].name == "owner/tiny@aaaaaaaaaaaa"
    # the newest is not whole
    newer = _cache(tmp_path, "b" * 40, whole, "vae/diffusion_pytorch_model.safetensors")
    assert open_repo(REPO, MODEL.files)["vae"].name == "owner/tiny@aaaaaaaaaaaa"
    (newer / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(
        whole / "vae" / "diffusion_pytorch_model.safetensors"
    )
    assert open_repo(REPO, MODEL.files)["vae"].name == "owner/tiny@bbbbbbbbbbbb"


def test_a_cache_with_parts_of_snapshots_alone_is_not_whole(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    _cache(tmp_path, "a" * 40, checkpoint.source("transformer").folder, "tokenizer/tokenizer.json")
    (tmp_path / "models--owner--tiny" / "snapshots" / "stray").write_text("no folder")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids downloads"):
        open_repo(REPO, MODEL.files)


def test_one_file_of_a_repository(hub_in_use, monkeypatch):
    (hub_in_use.folder / "ara.safetensors").write_bytes(b"an adapter")
    path = fetch_file(f"{REPO}/ara.safetensors")
    assert path is not None
    assert path.read_bytes() == b"an adapter"
    assert set(hub_in_use.fetched) == {"ara.safetensors"}
    with pytest.raises(FileError, match=r"'owner/tiny' has no file 'gone\.safetensors'"):
        fetch_file(f"{REPO}/gone.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_file(f"{REPO}/ara.safetensors") == path
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids downloads"):
        fetch_file(f"{REPO}/gone.safetensors")


@pytest.mark.parametrize(
    "named",
    [
        "ara.safetensors", "owner/tiny", "/home/me/ara.safetensors", "C:\\loras\\ara.safetensors", "owner/tiny/..",
        "owner/tiny/ara.pt", "owner/tiny/*.safetensors", "owner/tiny/..\\ara.safetensors", "owner/tiny/", "",
    ],
)  # fmt: skip
def test_what_names_no_file_of_a_repository(named):
    assert fetch_file(named) is None
