"""Runs AI Toolkit's own code and ours on one job, each in a process of AI Toolkit's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")
PLAIN = {"quantize_transformer": None, "quantize_te": None, "lora": None}


def _run(script: str, job: Path, out: Path) -> dict[str, torch.Tensor]:
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script), str(job), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return load_file(out)


@pytest.fixture
def ai_toolkit(tmp_path):
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
        theirs = _run(script, path, tmp_path / "theirs.safetensors")
        ours = _run("own_worker.py", path, tmp_path / "ours.safetensors")
        assert len(ours) == 2 * len(job["items"])
        for key, value in ours.items():
            assert value.dtype == theirs[key].dtype, key
            assert torch.equal(value, theirs[key]), key

    return compare
