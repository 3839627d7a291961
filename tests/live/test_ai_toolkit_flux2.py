"""AI Toolkit's own FLUX.2 code and ours, side by side in one interpreter, on recorded tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"

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
JOBS = {
    "text and control images": {"items": [FOX, TALL, ODD, THREE, PLAIN]},
    "LoRA merged": {"lora": "lora_f16", "items": [FOX | WEAK, ODD | WEAK]},
    "LoRA live": {"lora": "lora_f32", "items": [FOX, TALL | WEAK]},
    "LoKr merged": {"lora": "lokr_full_f16", "items": [FOX]},
    "LoKr live": {"lora": "lokr_decomposed_f32", "items": [FOX, FOX | WEAK]},
    "LoKr in the old format": {"lora": "lokr_old_decomposed_f32", "items": [FOX]},
    "both qfloat8, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "qfloat8", "quantize_te": "qfloat8",
        "items": [FOX, ODD],
    },
    "transformer qint8, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "qint8", "items": [FOX],
    },
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
    "both float8, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "float8", "quantize_te": "float8", "items": [FOX, ODD],
    },
    "both uint3, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "uint3", "quantize_te": "uint3", "items": [FOX],
    },
    "both qint4, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "qint4", "quantize_te": "qint4", "items": [FOX],
    },
    "transformer int8, LoKr live": {"lora": "lokr_full_f16", "quantize_transformer": "int8", "items": [FOX]},
    "recovery adapter, LoRA live": {
        "recovery_adapter": "lora_f16", "quantize_transformer": "uint3", "lora": "lora_f32",
        "items": [FOX, TALL | WEAK],
    },
    "klein, recovery adapter": {
        "model": "flux2_klein_4b", "recovery_adapter": "lora_f32", "quantize_transformer": "uint4", "items": [FOX],
    },
    "klein": {"model": "flux2_klein_4b", "items": [FOX, TALL, PLAIN, ODD]},
    "klein, text encoder qfloat8, LoRA merged": {
        "model": "flux2_klein_4b", "quantize_te": "qfloat8", "lora": "lora_f32", "items": [TALL],
    },
    "klein, transformer uint4, text encoder float8": {
        "model": "flux2_klein_4b", "quantize_transformer": "uint4", "quantize_te": "float8", "items": [FOX],
    },
    "klein, LoRA live": {
        "model": "flux2_klein_4b", "lora": "lora_f32", "items": [FOX, TALL | WEAK],
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, name, dtype):
    job = {"model": "flux2", "dtype": dtype} | JOBS[name]
    folder = GOLDEN / job["model"]
    job["checkpoint"] = str(folder / "base")
    for key in ("lora", "recovery_adapter"):
        if key in job:
            job[key] = str(folder / "lora" / f"{job[key]}.safetensors")
    ai_toolkit("ai_toolkit_flux2_worker.py", job)
