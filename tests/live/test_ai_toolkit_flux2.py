"""AI Toolkit's own FLUX.2 code and ours, side by side in one interpreter, on recorded tiny files: identical to the bit.

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
GOLDEN = HERE.parent / "golden"
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in SETTINGS),
    reason=f"needs AI Toolkit: set {' and '.join(SETTINGS)}",
)

IMAGES = [str(GOLDEN / "flux2" / "control" / f"ctrl_{name}.png") for name in ("a", "b", "large")]
FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 112, "seed": 123456789, "negative_prompt": "blurry", "guidance": 2.5, "steps": 5}
ODD = FOX | {"width": 79, "height": 109, "control": IMAGES[:2], "prompt": " [IMG] a red fox\n"}
THREE = FOX | {"control": [IMAGES[1], IMAGES[0], IMAGES[1]]}
PLAIN = FOX | {"guidance": 1.0, "prompt": ""}
WEAK = {"network_multiplier": -0.6}
LORA = {"type": "lora", "linear": 4, "linear_alpha": 4}
DECOMPOSED = {"type": "lokr", "lokr_full_rank": False, "linear": 4, "linear_alpha": 1}
OLD = DECOMPOSED | {"old_lokr_format": True, "linear_alpha": 2}
JOBS = {
    "text and control images": {"items": [FOX, TALL, ODD, THREE, PLAIN]},
    "LoRA merged": {"lora": "lora_f16", "network": LORA, "items": [FOX | WEAK, ODD | WEAK]},
    "LoRA live": {"lora": "lora_f32", "network": LORA, "items": [FOX, TALL | WEAK]},
    "LoKr merged": {"lora": "lokr_full_f16", "network": {"type": "lokr"}, "items": [FOX]},
    "LoKr live": {"lora": "lokr_decomposed_f32", "network": DECOMPOSED, "items": [FOX, FOX | WEAK]},
    "LoKr in the old format": {"lora": "lokr_old_decomposed_f32", "network": OLD, "items": [FOX]},
    "both qfloat8, LoRA live": {
        "lora": "lora_f32", "network": LORA, "quantize_transformer": "qfloat8", "quantize_te": "qfloat8",
        "items": [FOX, ODD],
    },
    "transformer qint8, LoRA live": {
        "lora": "lora_f32", "network": LORA, "quantize_transformer": "qint8", "items": [FOX],
    },
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
    "klein": {"model": "flux2_klein_4b", "items": [FOX, TALL, PLAIN, ODD]},
    "klein, text encoder qfloat8, LoRA merged": {
        "model": "flux2_klein_4b", "quantize_te": "qfloat8", "lora": "lora_f32", "network": LORA, "items": [TALL],
    },
    "klein, LoRA live": {
        "model": "flux2_klein_4b", "lora": "lora_f32", "network": LORA, "items": [FOX, TALL | WEAK],
    },
}  # fmt: skip


def _run(script: str, job: Path, out: Path) -> dict[str, torch.Tensor]:
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / script), str(job), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(tmp_path, name, dtype):
    plain = {"model": "flux2", "quantize_transformer": None, "quantize_te": None, "lora": None, "network": None}
    job = plain | {"dtype": dtype} | JOBS[name]
    folder = GOLDEN / job["model"]
    job["checkpoint"] = str(folder / "base")
    if job["lora"]:
        job["lora"] = str(folder / "lora" / f"{job['lora']}.safetensors")
        assert Path(job["lora"]).is_file()
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    theirs = _run("ai_toolkit_flux2_worker.py", path, tmp_path / "theirs.safetensors")
    ours = _run("own_worker.py", path, tmp_path / "ours.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
