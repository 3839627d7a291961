"""AI Toolkit's own code and ours, side by side in one interpreter, on the same tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import pytest
from comfyui_aitk.headless.tiny.lumina2 import make_lora

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
    "both float8, LoRA live": {
        "quantize_te": "float8", "quantize_transformer": "float8", "lora": True, "items": [FOX, TALL],
    },
    "both uint4, LoRA live": {"quantize_te": "uint4", "quantize_transformer": "uint4", "lora": True, "items": [WEAK]},
    "text encoder int8": {"quantize_te": "int8", "items": [FOX]},
    "text encoder qint2": {"quantize_te": "qint2", "items": [FOX]},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, checkpoint, tmp_path, name, dtype):
    folder = checkpoint.source("transformer").folder
    job = {"model": "lumina2", "checkpoint": str(folder), "dtype": dtype} | JOBS[name]
    if job.get("lora"):
        job["lora"] = str(make_lora(tmp_path / "lora.safetensors", folder, rank=7, seed=4))
    ai_toolkit("ai_toolkit_worker.py", job)
