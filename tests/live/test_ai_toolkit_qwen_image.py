"""AI Toolkit's own Qwen-Image code and ours, in one interpreter, on recorded tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.qwen_image import make_lokr

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_image"

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 120, "seed": 123456789, "negative_prompt": "blurry", "guidance": 2.5, "steps": 5}
# 516 rows and 1,300 tokens: cut to 512 rows after the encoder, and before it
LONG = FOX | {"prompt": "a red fox in the snow, " * 70, "negative_prompt": "fog \n", "guidance": 1.25}
LONGER = FOX | {"prompt": "a red fox in the snow, " * 190, "negative_prompt": "fog, " * 300, "steps": 2}
PLAIN = FOX | {"guidance": 1.0, "prompt": ""}
STRONG = FOX | {"guidance": 12.0, "negative_prompt": "low quality", "steps": 2}
WEAK = {"network_multiplier": -0.6}
LARGE = FOX | {"width": 352, "height": 288, "steps": 2}
SIZES = [FOX | {"width": width, "height": height} for width, height in ((72, 104), (79, 109), (144, 95))]
JOBS = {
    "text": {"items": [FOX, TALL, STRONG, FOX | {"steps": 30}]},
    "long text": {"items": [LONG, LONGER]},
    "guidance 1": {"items": [PLAIN, FOX | {"guidance": 0.5}]},
    "odd sizes": {"items": SIZES},
    "whole and in tiles": {"items": [LARGE]},
    "in tiles": {"low_vram": True, "items": [LARGE, FOX]},
    "LoRA merged": {"lora": "lora_f16", "items": [FOX | WEAK, TALL | WEAK]},
    "LoRA live": {"lora": "lora_f32", "items": [FOX, TALL | WEAK, PLAIN]},
    "LoKr merged": {"lora": "lokr_full_f16", "items": [FOX, PLAIN]},
    "LoKr by a factor merged": {"lora": "lokr_factor_f16", "items": [FOX | WEAK]},
    "LoKr live": {"lora": "lokr_decomposed_f32", "items": [FOX, TALL | WEAK]},
    "LoKr in the old format": {"lora": "lokr_old_decomposed_f32", "items": [FOX]},
    "DoRA": {"lora": "dora_f32", "items": [FOX]},
    "both qfloat8, LoRA live, in tiles": {
        "lora": "lora_f32", "quantize_transformer": "qfloat8", "quantize_te": "qfloat8", "low_vram": True,
        "items": [FOX, TALL],
    },
    "transformer qfloat8": {"quantize_transformer": "qfloat8", "items": [FOX, PLAIN]},
    "transformer qfloat8, LoKr live": {
        "lora": "lokr_full_f32", "quantize_transformer": "qfloat8", "items": [FOX | WEAK],
    },
    "transformer uint4, DoRA": {"lora": "dora_f32", "quantize_transformer": "uint4", "items": [FOX]},
    "transformer float8, LoRA live": {"lora": "lora_f32", "quantize_transformer": "float8", "items": [FOX | WEAK]},
    "text encoder qfloat8": {"quantize_te": "qfloat8", "items": [FOX, TALL]},
    "text encoder qint8, LoRA merged": {"lora": "lora_f32", "quantize_te": "qint8", "items": [TALL]},
    "text encoder float8": {"quantize_te": "float8", "items": [FOX]},
    "recovery adapter": {"recovery_adapter": "lora_f16", "quantize_transformer": "uint3", "items": [FOX, PLAIN]},
    # as AI Toolkit's interface fills in a job on its 3 bits
    "recovery adapter, text encoder qfloat8, LoRA live": {
        "recovery_adapter": "lora_f16", "quantize_transformer": "uint3", "quantize_te": "qfloat8", "lora": "lora_f32",
        "items": [FOX, TALL | WEAK],
    },
    "recovery adapter, LoKr above": {
        "recovery_adapter": "lora_f16", "quantize_transformer": "uint4", "lora": "lokr_full_f32", "items": [FOX | WEAK],
    },
    "recovery adapter, DoRA above": {
        "recovery_adapter": "lora_f16", "quantize_transformer": "uint4", "lora": "dora_f32", "items": [FOX],
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, name, dtype):
    job = {"model": "qwen_image", "checkpoint": str(GOLDEN / "base"), "dtype": dtype} | JOBS[name]
    for key in ("lora", "recovery_adapter"):
        if key in job:
            job[key] = str(GOLDEN / "lora" / f"{job[key]}.safetensors")
    ai_toolkit("ai_toolkit_qwen_image_worker.py", job)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
def test_on_a_lycoris_lokr_as_recovery_adapter_it_is_identical_to_the_bit(ai_toolkit, tmp_path, dtype):
    # AI Toolkit takes one factor for all layers of it
    adapter = make_lokr(tmp_path / "lycoris.safetensors", GOLDEN / "base", factor=4, old_format=True, seed=7)
    job = {
        "model": "qwen_image", "checkpoint": str(GOLDEN / "base"), "dtype": dtype, "quantize_transformer": "uint3",
        "recovery_adapter": str(adapter), "lora": str(GOLDEN / "lora" / "lora_f32.safetensors"), "items": [FOX],
    }  # fmt: skip
    ai_toolkit("ai_toolkit_qwen_image_worker.py", job)
