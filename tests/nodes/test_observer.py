"""What a node shows while it works: phases, how far they are, and that they still go on; and Cancel."""

from __future__ import annotations

import io
import re
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, observer
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.host.comfyui import ComfyHost
from comfyui_aitk.nodes.observer import NodeObserver
from hub_server import COMMIT, REPO


class Cancel(BaseException):
    """What newer ComfyUI versions raise to interrupt: no Exception."""


class Page(PlainHost):
    """Keeps what the nodes show; ``cancel_at``: the user presses Cancel when a text begins so."""

    def __init__(self, *folders: Path, cancel_at: str = "never") -> None:
        super().__init__(*folders, "cpu")
        self.texts: list[tuple[str | None, str]] = []
        self.cancel_at, self.cancelled = cancel_at, False
        self.many = threading.Event()

    def show_text(self, node_id, text) -> None:
        self.texts.append((node_id, text))
        self.cancelled = self.cancelled or text.startswith(self.cancel_at)
        if len(self.texts) > 3:
            self.many.set()

    show_progress = show_text

    def check_interrupt(self) -> None:
        if self.cancelled:
            self.cancelled, self.cancel_at = False, "never"
            raise Cancel


@pytest.fixture
def page(host):
    found = Page(host.models, host.input, host.output)
    use_host(found)
    return found


def test_a_phase_that_says_nothing_is_shown_again_and_again(page, monkeypatch):
    monkeypatch.setattr(observer, "_SAY_AGAIN", 0.01)
    with NodeObserver(page, "7", "importing"):
        # nobody calls the observer
        assert page.many.wait(60)
    assert set(page.texts) == {("7", "importing")}
    count = len(page.texts)
    time.sleep(0.05)
    assert len(page.texts) == count, "nothing is shown over what comes next"


def test_seconds_are_those_of_the_phase(page, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = NodeObserver(page, "7", "importing")
    watched.stage("loading")
    now += 30
    watched.progress("loading: 1 of 2 GB")
    now += 200
    watched.progress("loading: 2 of 2 GB")
    watched.stage("decoding")
    watched.progress("decoding")
    texts = [text for _, text in page.texts]
    assert texts == ["loading", "loading: 1 of 2 GB (30 s)", "loading: 2 of 2 GB (4 min)", "decoding", "decoding"]


def test_a_terminal_s_line_is_written_over_and_a_log_gets_few(host, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    host.show_progress("7", "loading: 1 of 2 GB")
    host.show_progress("7", "loading: 2 of 2 GB")
    host.show_text("7", "decoding")
    assert re.split(r"\r +\r", screen.getvalue()) == [
        "node 7: loading: 1 of 2 GB", "node 7: loading: 2 of 2 GB", "node 7: decoding\n",
    ]  # fmt: skip

    log, now = io.StringIO(), time.monotonic()
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    host.show_text("7", "loading")
    for second in range(25):
        now += 1
        host.show_progress("7", f"loading ({second + 1} s)")
    assert log.getvalue().splitlines() == ["node 7: loading", "node 7: loading (10 s)", "node 7: loading (20 s)"]


def test_comfyui_shows_progress_as_it_shows_any_text(monkeypatch):
    shown = []
    monkeypatch.setattr(ComfyHost, "show_text", lambda _, *values: shown.append(values))
    ComfyHost().show_progress("7", "loading: 1 of 2 GB")
    assert shown == [("7", "loading: 1 of 2 GB")]


def _load(**inputs):
    return NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", dtype="float32", **inputs)


def _sample(pipeline):
    return NODE_CLASS_MAPPINGS["AITKSampler"]().sample(
        pipeline, "a cat", "", 64, 64, 2, 4.0, 1, "reference pipeline", batch_size=2, unique_id="9"
    )["result"][0]


def test_a_download_is_shown_on_the_loader_and_cancel_ends_it(page, hub_in_use):
    hub = hub_in_use
    hub.stops_after = 1 << 20
    page.cancel_at = f"downloading {REPO}: "
    with pytest.raises(Cancel):
        _load(weights="default", repo_id=REPO, unique_id="5")
    assert psutil.Process().children() == []
    assert page.texts[0] == ("5", f"asking the hub for the files of {REPO}")

    hub.stops_after = None
    hub.go_on.set()
    page.texts.clear()
    _load(weights="default", repo_id=REPO, unique_id="5")
    assert re.fullmatch(rf"downloaded {REPO}: [\d.]+ MB in \d+ s", page.texts[-2][1])
    assert page.texts[-1] == ("5", f"{REPO}@{COMMIT[:12]}")


def test_a_loader_that_has_nothing_to_wait_for_shows_nothing(page):
    _load(weights="tiny", unique_id="5")
    assert page.texts == []


def test_a_node_that_was_stopped_does_not_look_as_if_it_worked(page):
    (pipeline,) = _load(weights="tiny")
    page.cancel_at = "decoding picture 2"
    with pytest.raises(Cancel):
        _sample(pipeline)
    assert page.texts[-1] == ("9", "stopped while decoding picture 2 of 2")


def test_closing_notes_are_an_output_of_the_run(page):
    (pipeline,) = _load(weights="tiny")
    run = NODE_CLASS_MAPPINGS["AITKSampler"]().sample(
        pipeline, "a cat", "", 72, 64, 1, 1.0, 1, "reference pipeline", unique_id="9"
    )
    (closing,) = run["ui"]["text"]
    assert "rendered at 64 x 64 (asked for: 72 x 64)" in closing.splitlines()
    assert page.texts[-1] == ("9", closing)


def test_every_phase_of_a_run_is_named(page):
    (pipeline,) = _load(weights="tiny")
    _sample(pipeline)
    texts = [text for node, text in page.texts if node == "9"]
    phases = [
        "importing the code of Lumina Image 2.0", "checking the files", "loading text_encoder of tiny",
        "encoding text 1 of 2", "encoding text 2 of 2", "loading transformer of tiny",
        "noting which files these are", "sampling", "loading vae of tiny", "decoding picture 1 of 2",
        "decoding picture 2 of 2",
    ]  # fmt: skip
    assert [text for text in texts if text in phases] == phases


@pytest.mark.parametrize("phase", ["checking", "loading text", "encoding text 2", "loading trans", "sampling", "deco"])
def test_a_run_that_was_cancelled_in_any_phase_can_be_run_again(page, phase):
    (pipeline,) = _load(weights="tiny")
    page.cancel_at = phase
    with pytest.raises(Cancel):
        _sample(pipeline)
    # the page leaves the last text on the node
    assert page.texts[-1][1].startswith("stopped while ")
    found = _sample(pipeline)
    assert torch.equal(found, _sample(pipeline))
    assert found.shape == (2, 64, 64, 3)
