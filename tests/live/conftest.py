"""Runs AI Toolkit's own code and ours on one job, by turns, each in its own process of AI Toolkit's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")
TIMEOUT = 1800  # seconds of a job
END_OF_JOB = "@@ end of job"
PLAIN = {"quantize_transformer": None, "quantize_te": None, "lora": None}


class Worker:
    """A process of AI Toolkit's interpreter that does one job after another: its imports take longer than a job."""

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]},
        )  # fmt: skip

    def done(self, job: Path, out: Path) -> dict[str, torch.Tensor]:
        """What the worker makes of a job; where it fails, what it said is the test's failure."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([str(job), str(out)]) + "\n")
        stdin.flush()
        slow = Timer(TIMEOUT, self._process.kill)
        slow.start()
        said: list[str] = []
        for line in stdout:
            if line.strip() == END_OF_JOB:
                break
            said.append(line)
        slow.cancel()
        assert out.is_file(), "".join(said)[-6000:]
        return load_file(out)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def workers() -> Iterator[Callable[[str], Worker]]:
    """The worker of a script, the same one in all of a module's tests."""
    started: dict[str, Worker] = {}

    def worker(script: str) -> Worker:
        if script not in started:
            started[script] = Worker(script)
        return started[script]

    yield worker
    for one in started.values():
        one.stop()


@pytest.fixture
def ai_toolkit(tmp_path, workers):
    """Asserts that AI Toolkit and this pack make the same of a job, to the bit: ``ai_toolkit(script, job)``.

    The script is the one that calls AI Toolkit, e.g. ``ai_toolkit_worker.py``; a job's keys are in
    ``ai_toolkit_common.py``, and those that it leaves out are null.
    """
    if not all(os.environ.get(name) for name in SETTINGS):
        pytest.skip(f"needs AI Toolkit: set {' and '.join(SETTINGS)}")

    def compare(script: str, job: dict) -> None:
        for path in (job["checkpoint"], job.get("lora")):
            assert path is None or Path(path).exists(), path
        path = tmp_path / "job.json"
        path.write_text(json.dumps(PLAIN | job))
        theirs = workers(script).done(path, tmp_path / "theirs.safetensors")
        ours = workers("own_worker.py").done(path, tmp_path / "ours.safetensors")
        assert len(ours) == 2 * len(job["items"])
        for key, value in ours.items():
            assert value.dtype == theirs[key].dtype, key
            assert torch.equal(value, theirs[key]), key

    return compare
