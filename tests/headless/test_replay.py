"""The command ``replay`` on recorded jobs: its files, its exit status, and the workflow that it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.replay import replay_command
from comfyui_aitk.nodes.host import use_host
from recorded_jobs import GOLDEN, copy_slow_job, replayed_files

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("kept_engine")


@pytest.fixture
def folders(tmp_path: Path):
    """A models folder with the base of the recorded job ``my_job`` beside it."""
    shutil.copytree(GOLDEN / "lumina2" / "base", tmp_path / "models" / "diffusers" / "base")
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", tmp_path / "input" / "my_job")
    yield tmp_path
    use_host(None)


def _replay(folders: Path, *arguments: str, output: str = "out") -> int:
    return replay_command([*_own(folders, output), *arguments])


def _own(folders: Path, output: str) -> list[str]:
    own = ["--models", str(folders / "models"), "--output", str(folders / output), "--weights", "base"]
    return [str(folders / "input" / "my_job"), *own, "--device", "cpu"]


def test_a_job_becomes_pictures_a_page_and_a_report(folders, capsys):
    workflow = folders / "workflow.json"
    assert _replay(folders, "--checkpoints", "250,0", "--samples", "1", "--workflow", str(workflow)) == 0
    out = folders / "out"
    report = json.loads((out / "report.json").read_text())
    assert [cell["step"] for cell in report["cells"]] == [0, 250]
    for cell in report["cells"]:
        assert all((out / name).is_file() for name in cell["files"].values() if name)
        assert (cell["files"]["engine"], cell["oracle"]) == (None, None)
        # 1 level on 1 %: other kernels, see CONTRIBUTING.md
        assert cell["metrics"]["max"] <= 1
        assert cell["metrics"]["share"] < 0.01
    assert "lighthouse" in (out / "replay.html").read_text()
    assert (out / "contact_sheet.png").is_file()
    assert str(out / "replay.html") in capsys.readouterr().out
    # the workflow renders the first of these cells, from ComfyUI's input folder
    ran = ["--models", str(folders / "models"), "--input", str(folders / "input"), "--output", str(folders / "own")]
    assert run_command([str(workflow), *ran, "--device", "cpu", "--report", str(folders / "r.json")]) == 0
    (picture,) = (folders / "own").glob("*.png")
    assert picture.is_file()
    kept = [json.loads(path.read_text()) for path in (folders / "own" / "aitk_replay").glob("*.json")]
    assert [(one["seed"], one["loras"]) for one in kept] == [(7, [])]


def test_the_exit_status_tells_whether_every_cell_is_rendered(folders, capsys):
    (folders / "input" / "my_job" / "fox_style_v1_000000250.safetensors").unlink()
    assert _replay(folders, "--checkpoints", "0,250", "--samples", "0") == 1
    said = capsys.readouterr()
    assert "not rendered: step 250, sample 0" in said.err
    assert "1 not rendered" in said.out
    assert (folders / "out" / "replay.html").is_file()


def test_a_job_that_died_is_told(tmp_path, capsys):
    job = GOLDEN / "jobs" / "lumina2_neg_missing"
    models = tmp_path / "models" / "diffusers"
    shutil.copytree(GOLDEN / "lumina2" / "base", models / "base")
    own = ["--models", str(models.parent), "--output", str(tmp_path / "out"), "--weights", "base", "--device", "cpu"]
    assert replay_command([str(job), *own]) == 1
    said = capsys.readouterr()
    assert "1 identical" in said.out or "1 same picture" in said.out
    assert "not rendered: step 0, sample 1" in said.err
    use_host(None)


_IN_A_CHILD = """
import sys, tasks
tasks.load_pack()
from comfyui_aitk.headless.replay import replay_command
sys.exit(replay_command(sys.argv[1:]))
"""


def test_a_killed_replay_goes_on_where_it_stopped(folders):
    shutil.rmtree(folders / "input" / "my_job")
    copy_slow_job(folders / "input" / "my_job")
    chosen, store = ["--checkpoints", "0,250"], folders / "out" / "aitk_replay"
    # the keys of cells know the number of threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", _IN_A_CHILD, *_own(folders, "out"), *chosen]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as child:
        while len(list(store.glob("*.json"))) < 3:
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
    assert child.returncode != 0
    finished = sorted(store.glob("*.json"))
    assert 3 <= len(finished) < 6
    # a picture of which half was written, and a file that was never given its name
    half = finished.pop().with_suffix(".png")
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    draft = store / f".{'0' * 32}.part"
    draft.write_bytes(b"half")
    os.utime(draft, (0, 0))
    before = {path: path.stat().st_mtime_ns for path in finished}
    assert _replay(folders, *chosen) == 0
    report = json.loads((folders / "out" / "report.json").read_text())
    found = {cell["run"]["replay"]["key"] for cell in report["cells"] if cell["found"]}
    assert found == {path.stem for path in finished}
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert _replay(folders, *chosen, output="undisturbed") == 0
    assert replayed_files(folders / "out") == replayed_files(folders / "undisturbed")
