"""AI Toolkit's own OmniGen2 code and ours, in one interpreter, on recorded tiny files: identical to the bit.

With torch's kernels: the interpreter has no flash-attn, and without a GPU the worker hides triton.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "omnigen2"
LORA = str(GOLDEN / "lora" / "lora_f32.safetensors")

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
ODD = FOX | {"width": 79, "height": 109, "control": [str(GOLDEN / "control" / "ctrl_a.png")], "negative_prompt": "fog"}
WEAK = {"network_multiplier": -0.6}
JOBS = {
    "text and a control image": {"items": [FOX, ODD, FOX | {"guidance": 1.0}]},
    "above one megapixel": {"items": [FOX | {"width": 1040, "height": 1032, "steps": 1}]},
    "LoRA merged": {"lora": LORA, "items": [FOX | WEAK, ODD | WEAK]},
    "LoRA live": {"lora": LORA, "items": [FOX, ODD | WEAK]},
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
    "both float8, LoRA live": {
        "lora": LORA, "quantize_transformer": "float8", "quantize_te": "float8", "items": [FOX, ODD],
    },
    "transformer uint4, text encoder uint6, LoRA live": {
        "lora": LORA, "quantize_transformer": "uint4", "quantize_te": "uint6", "items": [FOX],
    },
    "transformer qint2": {"quantize_transformer": "qint2", "items": [FOX]},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, name, dtype):
    job = {"model": "omnigen2", "checkpoint": str(GOLDEN / "base"), "dtype": dtype} | JOBS[name]
    ai_toolkit("omnigen2_worker.py", job)
