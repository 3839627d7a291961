"""Downloads: what is said before and meanwhile, whether there is room, Cancel, and going on.

huggingface_hub itself fetches real bytes from a small hub on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from comfyui_aitk.pipelines.errors import HubError
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.weights import download
from comfyui_aitk.pipelines.weights.hub import open_repo
from hub_server import PIECE, REPO, Hub

MODEL = find_model("lumina2").files
WITHIN = 2.0  # seconds from Cancel to the end


class Cancel(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class OldCancel(Exception):
    """What older ones raise."""


class Watcher(SilentObserver):
    """Keeps what it is told; interrupts once the hub sends nothing more."""

    def __init__(self, hub: Hub | None = None, cancel: type[BaseException] = Cancel) -> None:
        self.texts: list[str] = []
        self._hub, self._cancel = hub, cancel
        self.cancelled = 0.0

    def stage(self, text: str) -> None:
        self.texts.append(text)

    progress = stage

    def check(self) -> None:
        if self._hub is not None and self._hub.stopped.is_set():
            self.cancelled = time.monotonic()
            raise self._cancel


@pytest.fixture
def cache(hub_in_use: Hub, hub_cache: Path) -> Path:
    """An empty cache whose hub is ``hub``."""
    return hub_cache


def _large(hub: Hub) -> int:
    """Bytes of the files that hold weights."""
    return sum(file.stat().st_size for file in hub.folder.rglob("*.safetensors"))


def _check_content(hub: Hub, cache: Path) -> None:
    (snapshot,) = cache.glob("models--owner--tiny/snapshots/*")
    for file in snapshot.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (hub.folder / file.relative_to(snapshot)).read_bytes(), file
    assert not list(cache.rglob("*.incomplete"))


def test_it_says_how_far_it_is_and_then_what_came(hub, cache):
    watcher = Watcher()
    open_repo(REPO, MODEL, (), watcher)
    _check_content(hub, cache)
    assert watcher.texts[0] == f"asking the hub for the files of {REPO}"
    assert watcher.texts[1].startswith(f"downloading {REPO}: 0.0 of ")
    assert watcher.texts[-1].startswith(f"downloaded {REPO}: ")
    assert watcher.texts[-1].endswith(" s")


def test_a_repository_that_is_there_asks_and_says_nothing(hub, cache):
    open_repo(REPO, MODEL)
    hub.fetched.clear()
    watcher = Watcher()
    open_repo(REPO, MODEL, (), watcher)
    assert (watcher.texts, hub.fetched) == ([], [])


@pytest.mark.parametrize("cancel", [Cancel, OldCancel])
def test_cancel_ends_it_at_once_and_it_goes_on_within_the_file(hub, cache, cancel):
    hub.stops_after = _large(hub) // 2
    watcher = Watcher(hub, cancel)
    with pytest.raises(cancel):
        open_repo(REPO, MODEL, (), watcher)
    assert time.monotonic() - watcher.cancelled < WITHIN
    assert psutil.Process().children() == [], "its process has ended"

    kept = sum(file.stat().st_size for file in cache.glob("*/blobs/*") if file.stat().st_size >= PIECE)
    assert list(cache.rglob("*.aitk.incomplete")), "it was within a file"
    hub.asked, hub.stops_after = 0, None
    hub.go_on.set()
    open_repo(REPO, MODEL)
    assert hub.asked == _large(hub) - kept
    _check_content(hub, cache)


def test_cancel_while_the_hub_says_nothing(hub, cache, monkeypatch):
    """A server that takes a connection and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        asked = SimpleNamespace(stopped=SimpleNamespace(is_set=lambda: True))
        watcher = Watcher(asked)
        with pytest.raises(Cancel):
            open_repo(REPO, MODEL, (), watcher)
    assert time.monotonic() - watcher.cancelled < WITHIN
    assert psutil.Process().children() == []


def test_a_disk_without_room_is_named_before_anything_is_fetched(hub, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        HubError,
        match=r"'owner/tiny' needs [\d.]+ MB more, and the disk of Hugging Face's cache has 1.0 KB free\. Make",
    ):
        open_repo(REPO, MODEL)
    assert hub.fetched == []


def test_what_is_there_already_needs_no_room(hub, cache, monkeypatch):
    hub.stops_after = _large(hub) // 2
    with pytest.raises(Cancel):
        open_repo(REPO, MODEL, (), Watcher(hub))
    hub.stops_after = None
    hub.go_on.set()
    wanted = [file for file in hub.folder.rglob("*") if file.suffix not in (".pth", ".bin") and file.is_file()]
    whole = sum(file.stat().st_size for file in wanted)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=whole - PIECE))
    open_repo(REPO, MODEL)
    _check_content(hub, cache)


def test_a_server_that_knows_no_ranges_sends_files_whole(hub, cache):
    hub.ranges = False
    open_repo(REPO, MODEL)
    _check_content(hub, cache)


def test_an_address_that_has_ended_is_asked_for_again(hub, cache):
    hub.refused = 3
    open_repo(REPO, MODEL)
    _check_content(hub, cache)


def _start(hub: Hub, cache: Path, *program: str) -> subprocess.Popen:
    """The process alone, told to go on."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    child = subprocess.Popen([sys.executable, *program], stdin=-1, stdout=-1, env={**os.environ, **settings})
    job = {"repo_id": REPO, "patterns": ["*/*.safetensors"], "path": sys.path, "most": PIECE}
    child.stdin.write(json.dumps(job).encode() + b"\n{}\n")
    child.stdin.flush()
    return child


def test_a_cache_without_links_holds_every_file_once(hub, cache):
    """As on Windows without developer mode."""
    program = (
        "import runpy, huggingface_hub.file_download as f; f.are_symlinks_supported = lambda *_: False; "
        f"runpy.run_path({str(download._CHILD)!r}, run_name='__main__')"
    )
    with _start(hub, cache, "-c", program) as child:
        folder = Path([json.loads(line) for line in child.stdout][-1]["folder"])
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert not (folder / name).is_symlink()
    assert (folder / name).read_bytes() == (hub.folder / name).read_bytes()
    held = [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size >= PIECE]
    assert len(held) == len(list(hub.folder.rglob("*.safetensors")))


def test_a_process_that_is_left_alone_ends(hub, cache):
    hub.stops_after = 0
    with _start(hub, cache, "-P", str(download._CHILD)) as child:
        assert hub.stopped.wait(60)
        child.stdin.close()
        assert child.wait(60) == 1


def test_the_token_reaches_the_hub_and_nothing_else(hub, cache, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    started = []
    popen = subprocess.Popen

    def start(command, **settings):
        started.extend(command)
        return popen(command, **settings)

    monkeypatch.setattr(subprocess, "Popen", start)
    watcher = Watcher()
    open_repo(REPO, MODEL, (), watcher)
    assert hub.tokens == {"Bearer hf_secret"}
    said = " ".join([*started, *watcher.texts, *capfd.readouterr()])
    assert "secret" not in said
    assert not any(b"secret" in file.read_bytes() for file in cache.rglob("*") if file.is_file())


def test_a_program_that_cannot_be_started_is_named(hub, cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(cache / "no-python"))
    with pytest.raises(HubError, match=r"could not be downloaded \(its process cannot be started\)"):
        open_repo(REPO, MODEL)
