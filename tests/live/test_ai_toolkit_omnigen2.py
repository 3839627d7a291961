"""AI Toolkit's own OmniGen2 code and ours, in one interpreter, on recorded tiny files: identical to the bit.

With torch's kernels: the interpreter has neither triton nor flash-attn.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "omnigen2"
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in SETTINGS),
    reason=f"needs AI Toolkit: set {' and '.join(SETTINGS)}",
)

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
ODD = FOX | {"width": 79, "height": 109, "control": str(GOLDEN / "control" / "ctrl_a.png"), "negative_prompt": "fog"}
WEAK = {"network_multiplier": -0.6}
JOBS = {
    "text and a control image": {"items": [FOX, ODD, FOX | {"guidance": 1.0}]},
    "above one megapixel": {"items": [FOX | {"width": 1040, "height": 1032, "steps": 1}]},
    "LoRA merged": {"lora": True, "items": [FOX | WEAK, ODD | WEAK]},
    "LoRA live": {"lora": True, "items": [FOX, ODD | WEAK]},
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
}


def _run(script: str, job: dict, folder: Path, name: str) -> dict[str, torch.Tensor]:
    path, out = folder / f"{name}.json", folder / f"{name}.safetensors"
    path.write_text(json.dumps(job))
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script), str(path), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(tmp_path, name, dtype):
    job = {"model": "omnigen2", "dtype": dtype, "quantize_transformer": None, "quantize_te": None} | JOBS[name]
    job["checkpoint"] = str(GOLDEN / "base")
    job["lora"] = str(GOLDEN / "lora" / "lora_f32.safetensors") if job.get("lora") else None
    theirs = _run("omnigen2_worker.py", job, tmp_path, "theirs")
    # ours takes several control images an item
    own = [item | {"control": [item["control"]]} if "control" in item else item for item in job["items"]]
    ours = _run("own_worker.py", job | {"items": own}, tmp_path, "ours")
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
