"""Runs a reference's own code and ours on one job, each in a process of the reference's interpreter."""

from __future__ import annotations

import functools
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
OWN = "own_worker.py"
TIMEOUT = 1800  # seconds of a job
END_OF_JOB = "@@ end of job"
INFERENCE = ("AITI_PATH", "AITI_PYTHON", "AI_TOOLKIT_PATH")
PLAIN = {"quantize_transformer": None, "quantize_te": None, "lora": None}


class Worker:
    """A process of an interpreter that does one job after another: its imports take longer than a job."""

    def __init__(self, python: str, script: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / script)], text=True, stdin=subprocess.PIPE,
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
    theirs = os.environ.get("AI_TOOLKIT_PYTHON", "")
    # with the same build of torch, and the versions of everything else that a user has
    own = os.environ.get("OWN_PYTHON", theirs)

    def worker(script: str) -> Worker:
        if script not in started:
            started[script] = Worker(own if script == OWN else theirs, script)
        return started[script]

    yield worker
    for one in started.values():
        one.stop()


def _run(python: str, paths: tuple[str, ...], script: str, job: Path, out: Path) -> dict[str, torch.Tensor]:
    command = [os.environ[python], str(HERE / script), str(job), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.environ[path] for path in paths)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return load_file(out)


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
        ours = workers(OWN).done(path, tmp_path / "ours.safetensors")
        assert len(ours) == 2 * len(job["items"])
        for key, value in ours.items():
            assert value.dtype == theirs[key].dtype, key
            assert torch.equal(value, theirs[key]), key

    return compare


@pytest.fixture
def inference_merges(tmp_path):
    """Asserts that ai-toolkit-inference and this pack merge a LoRA into the same weights, to the bit.

    A job's keys are in ``inference_merges_worker.py``.
    """
    if not all(os.environ.get(name) for name in INFERENCE):
        pytest.skip(f"needs ai-toolkit-inference and AI Toolkit: set {', '.join(INFERENCE)}")

    def compare(job: dict) -> None:
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job))
        run = functools.partial(_run, "AITI_PYTHON", ("AITI_PATH", "AI_TOOLKIT_PATH"))
        theirs = run("inference_merges_worker.py", path, tmp_path / "theirs.safetensors")
        ours = run("own_merges_worker.py", path, tmp_path / "ours.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value.dtype == theirs[key].dtype, key
            assert torch.equal(value, theirs[key]), key
        names = {key.partition(".")[2] for key in ours}
        changed = [name for name in names if not torch.equal(ours[f"merged0.{name}"], ours[f"merged1.{name}"])]
        assert len(changed) > 10

    return compare
