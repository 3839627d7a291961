"""A replay over two workers of a Ray cluster on this machine is the local one, whatever becomes of its workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from comfyui_aitk.headless.cluster import crew, passport
from comfyui_aitk.headless.cluster.cell_queue import CellQueue
from comfyui_aitk.headless.replay import replay_command
from comfyui_aitk.nodes.host import PlainHost, use_host

GOLDEN = Path(__file__).parent.parent / "golden"
# of a run: what a clock or the system's memory says, and what was loaded already
_OF_THE_DAY = ("seconds", "peak_memory", "work")


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of this machine alone, with two processors."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield found.address
    found.shutdown()


@pytest.fixture
def folders(tmp_path: Path):
    """A job whose sample 1 takes long enough to be killed, and the models folder of its base."""
    shutil.copytree(GOLDEN / "lumina2" / "base", tmp_path / "models" / "diffusers" / "base")
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", tmp_path / "my_job")
    config = tmp_path / "my_job" / "config.yaml"
    text = config.read_text()
    assert text.count("--s 5 ") == 1
    config.write_text(text.replace("--s 5 ", "--s 200 "))
    yield tmp_path
    use_host(None)


def _replay(folders: Path, output: str, *arguments: str) -> int:
    own = ["--models", str(folders / "models"), "--output", str(folders / output), "--weights", "base"]
    return replay_command([str(folders / "my_job"), *own, "--device", "cpu", *arguments])


def _files(folder: Path) -> dict[str, bytes]:
    """All that a replay wrote, with what a clock said taken out."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".html":
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    for name in [name for name in found if name.endswith(".json")]:
        content = json.loads(found[name])
        runs = [cell["run"] for cell in content["cells"]] if "cells" in content else [content]
        for run, key in ((run, key) for run in runs for key in _OF_THE_DAY):
            run.pop(key, None)
        content.pop("date", None)
        for cell in content.get("cells", ()):
            cell.pop("found")
        found[name] = json.dumps(content).encode()
    return found


def _watching(monkeypatch, see: Callable[[str], None]) -> None:
    """Has a test see each line of progress, a few times a second."""
    monkeypatch.setattr(crew, "_ASK_EVERY", 0.1)
    monkeypatch.setattr(PlainHost, "show_progress", lambda self, node, text: see(text))


def test_a_worker_that_dies_loses_its_cell_alone_and_the_rest_is_the_local_replay(
    cluster, folders, monkeypatch, capsys
):
    chosen = ["--checkpoints", "0,250,500"]
    assert _replay(folders, "local", *chosen) == 0
    killed: list[tuple[str, int]] = []

    def see(text: str) -> None:
        for pid, place in re.findall(r"\(process (\d+) on \S+\) at (step \d+, sample 1):", text):
            always, once = place == "step 250, sample 1", place == "step 0, sample 1" and not killed
            if (always or once) and (place, int(pid)) not in killed:
                killed.append((place, int(pid)))
                os.kill(int(pid), signal.SIGKILL)

    ray = ["--ray", cluster, "--ray-workers", "2", *chosen]
    _watching(monkeypatch, see)
    assert _replay(folders, "out", *ray) == 1
    assert [place for place, _ in killed].count("step 250, sample 1") == 3
    said = capsys.readouterr()
    assert "not rendered: step 250, sample 1: 3 workers died with it" in said.err
    assert said.err.count("not rendered:") == 1
    # the same command does what is left, and nothing else
    monkeypatch.undo()
    assert _replay(folders, "out", *ray) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if " of 1 cells: " in line]
    assert _files(folders / "out") == _files(folders / "local")
