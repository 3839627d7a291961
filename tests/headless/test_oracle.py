"""``replay --oracle`` on a recorded job: three pictures of each cell, their verdict, and no token anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.replay import replay_command
from comfyui_aitk.nodes.host import use_host
from comfyui_aitk.pipelines.oracle.access import TOKEN_VARIABLE
from engine_server import TOKEN, EngineServer, running
from PIL import Image
from recorded_jobs import moved

GOLDEN = Path(__file__).parent.parent / "golden"
CHOSEN = ("--checkpoints", "0,250", "--samples", "0")

pytestmark = pytest.mark.usefixtures("kept_engine")


class Place:
    """A job with its base, an engine that draws its previews, and the command on both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.job = folder / "input" / "my_job"
        shutil.copytree(GOLDEN / "lumina2" / "base", folder / "models" / "diffusers" / "base")
        shutil.copytree(GOLDEN / "jobs" / "lumina2_png", self.job)

    def preview(self, step: int) -> Path:
        (found,) = (self.job / "samples").glob(f"*__{step:09}_0.png")
        return found

    def draw(self, body: dict) -> bytes:
        """The trainer's own picture of what was asked for."""
        return self.preview(250 if "loras" in body["model"] else 0).read_bytes()

    def replay(self, server: EngineServer, *more: str) -> int:
        folders = ["--models", str(self.folder / "models"), "--output", str(self.out), "--weights", "base"]
        own = [*folders, "--device", "cpu", "--no-floor", *CHOSEN, "--oracle", server.address]
        return replay_command([str(self.job), *own, *more])

    def pictures_on_the_sheet(self) -> int:
        """How many a cell has: the margin of 132 pixels ends where the first begins, and each has 66."""
        middle = np.asarray(Image.open(self.out / "contact_sheet.png"))[80, 132 + 33 :: 66]
        return int((middle != (250, 250, 250)).any(axis=1).sum())

    def cells(self) -> list[dict]:
        return json.loads((self.out / "report.json").read_text())["cells"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    yield Place(tmp_path)
    use_host(None)


def test_three_ways_are_in_the_report_on_the_page_and_on_the_sheet(place, capsys):
    with running(place.draw) as server:
        workflow = place.folder / "workflow.json"
        assert place.replay(server, "--workflow", str(workflow)) == 0
        base, lora = place.cells()
        assert [len(server.bodies), base["oracle"]["finding"], lora["oracle"]["finding"]] == [
            2,
            "all equal",
            "all equal",
        ]
        assert [one["pair"] for one in base["oracle"]["pairs"]] == [
            ["trainer", "ours"], ["trainer", "engine"], ["ours", "engine"],
        ]  # fmt: skip
        assert {one["verdict"] for one in lora["oracle"]["pairs"]} <= {"identical", "kernel noise"}
        assert "LoRA as hooks" in lora["oracle"]["words"]
        assert "LoRA as hooks" not in base["oracle"]["words"]
        assert (place.out / lora["files"]["engine"]).is_file()
        data = (place.out / "replay.html").read_text("utf-8")
        assert lora["files"]["engine"] in data
        assert place.pictures_on_the_sheet() == 4
        said = capsys.readouterr()
        assert "engine: 2 all equal" in said.out
        # the same command again asks the engine for nothing
        assert place.replay(server) == 0
        assert len(server.bodies) == 2
        assert all(cell["oracle"]["found"] for cell in place.cells())
        said_again = capsys.readouterr()
    text = said.out + said.err + said_again.out + said_again.err
    written = [path for path in (*place.out.rglob("*"), workflow) if path.is_file()]
    assert len(written) > 10
    assert TOKEN not in text
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    shutil.rmtree(place.out)
    folders = ["--models", str(place.folder / "models"), "--output", str(place.out), "--weights", "base"]
    assert replay_command([str(place.job), *folders, "--device", "cpu", "--no-floor", *CHOSEN]) == 0
    assert place.pictures_on_the_sheet() == 3


def test_the_odd_one_is_named(place):
    original = place.preview(250).read_bytes()
    with running(lambda body: moved(place.draw(body), 3)) as server:
        place.replay(server)
        assert [cell["oracle"]["finding"] for cell in place.cells()] == ["engine differs"] * 2
        assert "as is known of it: it applies a LoRA as hooks" in place.cells()[1]["oracle"]["words"]
    # the trainer's file is not what our code draws, and the engine draws the file
    shutil.rmtree(place.out)
    place.preview(250).write_bytes(moved(original, 3))
    with running(place.draw) as server:
        place.replay(server)
        assert [cell["oracle"]["finding"] for cell in place.cells()] == ["all equal", "ours at fault"]
    # neither do ours nor the engine's come to the file
    shutil.rmtree(place.out)
    with running(lambda body: original if "loras" in body["model"] else place.draw(body)) as server:
        place.replay(server)
        assert [cell["oracle"]["finding"] for cell in place.cells()] == ["all equal", "recorded run differed"]


def test_a_lost_engine_loses_nothing_of_ours(place, capsys):
    with running(place.draw) as server:
        server.failing.hangs = True
        assert place.replay(server, "--oracle-timeout", "0.5") == 0
    said = capsys.readouterr()
    cells = place.cells()
    assert all((place.out / cell["files"]["ours"]).is_file() for cell in cells)
    assert [cell["verdict"] for cell in cells] == ["identical", "identical"]
    assert [cell["files"]["engine"] for cell in cells] == [None, None]
    assert "not by the engine: step 0, sample 0: The engine at http://127.0.0.1" in said.err
    assert "not by the engine: step 250, sample 0: Not asked, after this at step 0" in said.err
    assert "engine: 2 no engine" in said.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--oracle", "http://192.168.0.1:8765"], "--oracle leads to '192.168.0.1', which is not this machine"),
        (["--oracle", f"http://127.0.0.1:80/?token={TOKEN}"], "--oracle has more in it than an address"),
        (["--oracle", "http://127.0.0.1:80", "--oracle-timeout", "nan"], "--oracle-timeout is nan"),
        (["--oracle-remote"], "--oracle-remote says how an engine is asked"),
        (["--oracle", "http://127.0.0.1:80", "--oracle-file", "nowhere.json"], "'nowhere.json' cannot be read"),
    ],
)
def test_wrong_options_are_told_before_anything_is_rendered(place, capsys, more, words):
    own = ["--models", str(place.folder / "models"), "--output", str(place.out), "--weights", "base"]
    assert replay_command([str(place.job), *own, *more]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert TOKEN not in said.err + said.out
    assert not place.out.exists()
