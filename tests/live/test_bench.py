"""The benchmark beside AI Toolkit and ai-toolkit-inference: it runs, and where a recipe is theirs, so are the pixels.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter> AITI_PATH=<checkout> AITI_PYTHON=<interpreter> \\
    python3 tasks.py test tests/live/test_bench.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_aitk.headless.bench.peers.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
SAME = ("first picture", "another seed", "another prompt", "first LoRA and its picture", "another LoRA and its picture")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_beside_a_peer(kind, tmp_path):
    if not os.environ.get(kind.path) or not any(os.environ.get(name) for name in kind.pythons):
        pytest.skip(f"needs {kind.title}: set {kind.path} and {' or '.join(kind.pythons)}")
    others = {other.path for other in KINDS} - {kind.path}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tasks.py"), "bench", "--quick", "--peers", "--pairs", "1", "--device", "cpu",
         "--folder", str(tmp_path)],
        capture_output=True, text=True, timeout=1800,
        env={name: value for name, value in os.environ.items() if name not in others},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, _, beside = done.stdout.partition("\n\n")
    about, head, *lines = beside.splitlines()
    assert about.startswith(f"{kind.title} at ")
    assert head.split()[:3] == ["what", "ours", kind.title.split()[0]]
    rows = {line.split("  ")[0]: line for line in lines}
    assert len(rows) == 11
    for name in SAME if kind.title == "AI Toolkit" else ():
        assert "the same pixels" in rows[name], rows[name]
    assert kind.swap in rows["another LoRA and its picture"]
