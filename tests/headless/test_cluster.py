"""A replay over two workers of a Ray cluster on this machine is the local one, whatever becomes of its workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from comfyui_aitk.headless.cluster import crew, passport
from comfyui_aitk.headless.cluster.cell_queue import CellQueue
from comfyui_aitk.headless.replay import replay_command
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.oracle.access import TOKEN_VARIABLE
from comfyui_aitk.pipelines.replay.kernels import other_kernels
from engine_server import TOKEN, running
from recorded_jobs import GOLDEN, copy_slow_job, moved, replayed_files


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
    copy_slow_job(tmp_path / "my_job")
    yield tmp_path
    use_host(None)


def _replay(folders: Path, output: str, *arguments: str) -> int:
    own = ["--models", str(folders / "models"), "--output", str(folders / output), "--weights", "base"]
    return replay_command([str(folders / "my_job"), *own, "--device", "cpu", *arguments])


def _watching(monkeypatch, see: Callable[[str], None]) -> None:
    """Has a test see each line of progress, a few times a second."""
    monkeypatch.setattr(crew, "_ASK_EVERY", 0.1)
    monkeypatch.setattr(PlainHost, "show_progress", lambda self, node, text: see(text))


def test_a_worker_that_dies_loses_its_cell_alone_and_the_rest_is_the_local_replay(
    cluster, folders, monkeypatch, capsys
):
    chosen = ["--checkpoints", "0,250", "--samples", "0,1", "--no-floor"]
    assert _replay(folders, "local", *chosen) == 0
    killed: list[tuple[str, int]] = []

    def see(text: str) -> None:
        for pid, place in re.findall(r"\(process (\d+) on \S+\) at (step \d+, sample 1):", text):
            always, once = place == "step 250, sample 1", place == "step 0, sample 1" and not killed
            if (always or once) and (place, int(pid)) not in killed:
                killed.append((place, int(pid)))
                os.kill(int(pid), signal.SIGKILL)

    ray = ["--ray", cluster, *chosen]
    _watching(monkeypatch, see)
    monkeypatch.setattr(crew, "_TRIES", 2)
    assert _replay(folders, "out", *ray, "--ray-workers", "2") == 1
    assert [place for place, _ in killed].count("step 250, sample 1") == 2
    said = capsys.readouterr()
    assert "not rendered: step 250, sample 1: 2 workers died with it" in said.err
    assert said.err.count("not rendered:") == 1
    # the same command does what is left, and nothing else
    monkeypatch.undo()
    assert _replay(folders, "out", *ray) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if " of 1 cells: " in line]
    assert replayed_files(folders / "out") == replayed_files(folders / "local")


def test_what_a_job_takes_from_elsewhere_its_floor_and_the_engine_beside_it_are_as_in_the_local_replay(
    cluster, folders, monkeypatch
):
    _take_from_elsewhere(folders)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (preview,) = (folders / "my_job" / "samples").glob("*__000000500_0.png")
    recorded = preview.read_bytes()
    # near and farther than kernels change it: all kinds of them are tried
    preview.write_bytes(moved(recorded, 3))
    with running(lambda body: recorded) as server:
        chosen = ["--checkpoints", "0,500", "--samples", "0", "--oracle", server.address]
        assert _replay(folders, "local", *chosen) == 0
        assert _replay(folders, "out", "--ray", cluster, *chosen) == 0
    assert replayed_files(folders / "out") == replayed_files(folders / "local")
    first, last = json.loads((folders / "out" / "report.json").read_text())["cells"]
    assert [lora["name"] for lora in first["run"]["loras"]] == ["fox_before.safetensors"]
    assert "gemma" in json.dumps(first["run"]["model"])
    assert last["verdict"] == "same picture"
    tried = last["comparison"]["floors"]
    assert [one["kernels"] for one in tried] == [one.name for one in other_kernels("cpu")]
    assert not [one["problem"] for one in tried if one["problem"]]
    assert last["oracle"]["finding"]


def _take_from_elsewhere(folders: Path) -> None:
    """Has the job begin with a LoRA, and take its text encoder from a folder of its own."""
    models, config = folders / "models", folders / "my_job" / "config.yaml"
    models.joinpath("loras").mkdir()
    shutil.copy(GOLDEN / "lumina2" / "lora" / "lora_f32.safetensors", models / "loras" / "fox_before.safetensors")
    base = models / "diffusers" / "base"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(base / part, models / "diffusers" / "gemma", dirs_exist_ok=True)
    section = yaml.safe_load(config.read_text())
    process = section["config"]["process"][0]
    process["network"]["pretrained_lora_path"] = "/trainer/fox_before.safetensors"
    process["model"]["te_name_or_path"] = "/trainer/gemma"
    config.write_text(yaml.safe_dump(section))


def test_an_address_at_which_nobody_listens_is_told_at_once(folders, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    assert _replay(folders, "out", "--ray", address) == 1
    assert f"No Ray cluster answers at --ray '{address}'" in capsys.readouterr().err
    assert not list((folders / "out").rglob("*.png"))


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(cluster, folders, monkeypatch, capsys):
    workers: list[int] = []

    def see(text: str) -> None:
        workers.extend(int(pid) for pid in re.findall(r"\(process (\d+) on", text))
        if "1 of 2 cells" in text and "sample 1: " in text:
            raise KeyboardInterrupt

    _watching(monkeypatch, see)
    assert _replay(folders, "out", "--ray", cluster, "--samples", "0,1", "--checkpoints", "0") == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(list((folders / "out" / "aitk_replay").glob("*.json"))) == 1
    (worker,) = set(workers)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(worker).wait(60)


def test_a_worker_that_would_render_otherwise_is_refused_by_name(cluster, folders, monkeypatch, capsys):
    own = passport.versions()
    monkeypatch.setattr(passport, "versions", lambda: {**own, "torch": "2.0.0", "diffusers": "0.1"})
    assert _replay(folders, "out", "--ray", cluster) == 1
    said = capsys.readouterr().err
    refused = re.search(
        r"error: No worker of the cluster is left\. worker 1 \(process \d+ on \S+\) is refused: (.*)", said
    )
    assert refused
    assert f"torch is {own['torch']} there and 2.0.0 here" in refused[1]
    assert f"diffusers is {own['diffusers']} there and 0.1 here" in refused[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ray-workers", "2"], "--ray-workers needs --ray"),
        (["--ray", "auto", "--ray-workers", "0"], "must be 1 or more"),
        (["--ray", "auto", "--device", "cuda:1"], "leave the number of --device out"),
        (["--ray", "auto"], "pip install"),
    ],
)
def test_what_stands_against_a_cluster_is_said_before_anything_starts(folders, monkeypatch, capsys, arguments, said):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert _replay(folders, "out", *arguments) == 1
    assert said in capsys.readouterr().err


def test_a_worker_stays_with_its_checkpoint():
    """It takes another one's cells only where all checkpoints are in hand, and there where most are left."""
    queue = CellQueue(
        {f"{step}-{index}": step for step, count in ((0, 6), (250, 3), (500, 2)) for index in range(count)}
    )
    assert [queue.take(None, []), queue.take(0, [250])] == ["0-0", "0-1"]
    second = [queue.take(None, [0]), queue.take(250, [0]), queue.take(250, [0]), queue.take(250, [0])]
    assert second == ["250-0", "250-1", "250-2", "500-0"]
    queue.give_back("250-2")
    assert queue.take(500, [0]) == "500-1"
    assert queue.take(500, [0, 250]) == "0-2"
    queue.drop("0-4")
    assert [queue.take(250, [0]) for _ in range(4)] == ["250-2", "0-3", "0-5", None]
