"""Runs a reference's own code and ours on one job, each in a process of the reference's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest
import torch
from comfyui_aitk.headless.tiny import qwen2_5_tokenizer, qwen_image, qwen_image_edit
from safetensors.torch import load_file
from tokenizers import Tokenizer

HERE = Path(__file__).parent
AI_TOOLKIT = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")
# of 2026-04-13, the last one with transformers 4.57.3
EARLIER = ("AI_TOOLKIT_EARLIER_PATH", "AI_TOOLKIT_EARLIER_PYTHON")
INFERENCE = ("AITI_PATH", "AITI_PYTHON", "AI_TOOLKIT_PATH")
OWN = "own_worker.py"
TIMEOUT = 1800  # seconds of a job
END_OF_JOB = "@@ end of job"
PLAIN = {"quantize_transformer": None, "quantize_te": None, "lora": None}

Tensors = dict[str, torch.Tensor]


class Worker:
    """A process of an interpreter that does one job after another: its imports take longer than a job.

    Args:
        python: the interpreter.
        path: AI Toolkit's checkout.
        script: beside this file.
    """

    def __init__(self, python: str, path: str, script: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / script)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def done(self, job: Path, out: Path) -> Tensors:
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


Workers = Callable[[tuple[str, str], str], Worker]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """The worker of an AI Toolkit and a script, the same one in all of a module's tests."""
    started: dict[tuple[str, str], Worker] = {}

    def worker(settings: tuple[str, str], script: str) -> Worker:
        path, python = (os.environ[name] for name in settings)
        if script == OWN:
            # with the same build of torch, and the versions of everything else that a user has
            python = os.environ.get("OWN_PYTHON", python)
        if (path, script) not in started:
            started[path, script] = Worker(python, path, script)
        return started[path, script]

    yield worker
    for one in started.values():
        one.stop()


def _check_set(names: tuple[str, ...], what: str) -> None:
    """Skips the test where a variable is not set."""
    if not all(os.environ.get(name) for name in names):
        pytest.skip(f"needs {what}: set {', '.join(names)}")


def _transformers(python: str) -> tuple[int, ...]:
    """The version that the interpreter has which a variable names."""
    asked = "from importlib.metadata import version; print(version('transformers'))"
    told = subprocess.run([os.environ[python], "-c", asked], capture_output=True, text=True, check=True).stdout
    return tuple(int(own) for own in told.strip().split(".")[:2])


def _both(
    folder: Path, python: str, paths: tuple[str, ...], scripts: tuple[str, str], job: dict
) -> tuple[Tensors, Tensors]:
    """What their script and ours give for a job."""
    told = folder / "job.json"
    told.write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.environ[path] for path in paths)}
    found = []
    for script in scripts:
        out = folder / "out.safetensors"
        command = [os.environ[python], str(HERE / script), str(told), str(out)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        found.append(load_file(out))
        out.unlink()
    theirs, ours = found
    return theirs, ours


def _check(theirs: Tensors, ours: Tensors) -> None:
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype, key
        assert torch.equal(value, theirs[key]), key


def _previews(folder: Path, workers: Workers, settings: tuple[str, str]) -> Callable[[str, dict], None]:
    def compare(script: str, job: dict) -> None:
        for file in (job["checkpoint"], job.get("lora")):
            assert file is None or Path(file).exists(), file
        told = folder / "job.json"
        told.write_text(json.dumps(PLAIN | job))
        theirs = workers(settings, script).done(told, folder / "theirs.safetensors")
        ours = workers(settings, OWN).done(told, folder / "ours.safetensors")
        assert len(ours) == 2 * len(job["items"])
        _check(theirs, ours)

    return compare


@pytest.fixture
def ai_toolkit(tmp_path, workers) -> Callable[[str, dict], None]:
    """Asserts that AI Toolkit and this pack make the same of a job, to the bit: ``ai_toolkit(script, job)``.

    The script is the one that calls AI Toolkit, e.g. ``ai_toolkit_worker.py``; a job's keys are in
    ``ai_toolkit_common.py``, and those that it leaves out are null.
    """
    _check_set(AI_TOOLKIT, "AI Toolkit")
    return _previews(tmp_path, workers, AI_TOOLKIT)


@pytest.fixture
def pinned_towers(ai_toolkit) -> None:
    """Skips a test in bfloat16 that goes by how the pinned transformers computes a vision tower."""
    if _transformers("AI_TOOLKIT_PYTHON") >= (5, 17):
        pytest.skip("AI Toolkit pins transformers 5.5.3; newer ones do not round the angles of a vision tower")


@pytest.fixture
def earlier_ai_toolkit(tmp_path, workers) -> Callable[[str, dict], None]:
    """The same with AI Toolkit as it was; the job has a ``recipe``."""
    _check_set(EARLIER, "AI Toolkit of 2026-04-13")
    return _previews(tmp_path, workers, EARLIER)


@pytest.fixture
def inference_merges(tmp_path) -> Callable[[dict], None]:
    """Asserts that ai-toolkit-inference and this pack merge a LoRA into the same weights, to the bit.

    A job's keys are in ``inference_merges_worker.py``.
    """
    _check_set(INFERENCE, "ai-toolkit-inference and AI Toolkit")

    def compare(job: dict) -> None:
        scripts = ("inference_merges_worker.py", "own_merges_worker.py")
        theirs, ours = _both(tmp_path, "AITI_PYTHON", ("AITI_PATH", "AI_TOOLKIT_PATH"), scripts, job)
        assert ours.keys() == theirs.keys()
        _check(theirs, ours)
        names = {key.partition(".")[2] for key in ours}
        changed = [name for name in names if not torch.equal(ours[f"merged0.{name}"], ours[f"merged1.{name}"])]
        assert len(changed) > 10

    return compare


@pytest.fixture
def inference_texts(tmp_path) -> Callable[[dict], None]:
    """Asserts that ai-toolkit-inference and this pack encode texts with control images alike, to the bit.

    A job's keys are in ``inference_texts_worker.py``.
    """
    _check_set(INFERENCE, "ai-toolkit-inference and AI Toolkit")
    if _transformers("AITI_PYTHON") >= (5,):
        pytest.skip("ai-toolkit-inference pins transformers 4.57.3, and positions are others in the one of AITI_PYTHON")

    def compare(job: dict) -> None:
        scripts = ("inference_texts_worker.py", "own_texts_worker.py")
        theirs, ours = _both(tmp_path, "AITI_PYTHON", ("AITI_PATH", "AI_TOOLKIT_PATH"), scripts, job)
        assert ours.keys() == theirs.keys() and len(ours) == 2 * len(job["items"])
        _check(theirs, ours)

    return compare


@pytest.fixture(scope="module")
def like_transformers_4(tmp_path_factory) -> Path:
    """A tiny Qwen-Image-Edit with the files of the released ones, as transformers 4 reads them.

    Its tower has a block that sees whole pictures, too.
    """
    folder = qwen_image_edit.make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    for name in ("tokenizer", "processor"):
        tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        qwen2_5_tokenizer.write_tokenizer(folder / name, tokenizer, qwen_image.SPECIAL_TOKENS, slow=True)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    config["vision_config"]["fullatt_block_indexes"] = [1]
    path.write_text(json.dumps(config))
    return folder
