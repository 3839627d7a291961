"""AI Toolkit's own code and ours, side by side in one interpreter, on the same tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from safetensors.torch import load_file

HERE = Path(__file__).parent
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in SETTINGS),
    reason=f"needs AI Toolkit: set {' and '.join(SETTINGS)}",
)

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 112, "seed": 123456789, "negative_prompt": "blurry", "guidance": 2.5, "steps": 5}
PLAIN = FOX | {"guidance": 1.0, "prompt": ""}
TYPED = FOX | {"prompt": " a red fox\n", "negative_prompt": "fog \n"}
WEAK = FOX | {"network_multiplier": -0.6}
JOBS = {
    "text": {"items": [FOX, TALL, PLAIN, TYPED]},
    "LoRA merged": {"lora": True, "items": [WEAK, TALL | {"network_multiplier": -0.6}]},
    "LoRA live": {"lora": True, "items": [FOX, WEAK, TALL]},
    "text encoder qfloat8, LoRA merged": {"quantize_te": "qfloat8", "lora": True, "items": [FOX]},
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
    "both qfloat8, LoRA live": {
        "quantize_te": "qfloat8", "quantize_transformer": "qfloat8", "lora": True, "items": [FOX, TALL],
    },
    "transformer qint8, LoRA live": {"quantize_transformer": "qint8", "lora": True, "items": [WEAK]},
}  # fmt: skip


def _run(script: str, job: Path, out: Path) -> dict[str, torch.Tensor]:
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script), str(job), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(checkpoint, tmp_path, name, dtype):
    job = {
        "checkpoint": str(checkpoint.source("transformer").folder),
        "dtype": dtype,
        "quantize_transformer": None,
        "quantize_te": None,
    }
    job |= JOBS[name]
    lora = (
        make_lora(tmp_path / "lora.safetensors", checkpoint.source("transformer").folder, rank=7, seed=4)
        if job.get("lora")
        else None
    )
    job["lora"] = lora and str(lora)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    theirs = _run("ai_toolkit_worker.py", path, tmp_path / "theirs.safetensors")
    ours = _run("own_worker.py", path, tmp_path / "ours.safetensors")
    assert len(ours) == 2 * len(job["items"])
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
