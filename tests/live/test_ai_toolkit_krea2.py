"""AI Toolkit's own Krea 2 code and ours, in one interpreter, on recorded tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.krea2 import make_checkpoint, make_lora

GOLDEN = Path(__file__).parents[1] / "golden" / "krea2"

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 112, "seed": 123456789, "negative_prompt": "blurry", "guidance": 2.5, "steps": 5}
LONG = FOX | {"prompt": "a red fox in the snow, " * 120, "negative_prompt": "fog \n", "guidance": 1.25}
TURBO = FOX | {"steps": 9, "guidance": 1.0}
PLAIN = FOX | {"guidance": 1.0, "prompt": ""}
WIDE = FOX | {"width": 336, "height": 272, "steps": 2}
WEAK = {"network_multiplier": -0.6}
SIZES = [FOX | {"width": width, "height": height} for width, height in ((72, 104), (79, 109), (144, 80), (128, 64))]
JOBS = {
    "text": {"items": [FOX, TALL, LONG]},
    "guidance 1": {"items": [TURBO, PLAIN, FOX | {"guidance": 0.5}]},
    "odd sizes": {"items": SIZES},
    "in tiles": {"low_vram": True, "items": [WIDE, FOX]},
    "a fixed shift": {
        "model_kwargs": {"schedule_mu": 1.15}, "recipe_options": {"schedule_mu": 1.15}, "items": [FOX, TALL],
    },
    "LoRA merged": {"lora": "lora_f16", "items": [FOX | WEAK, TALL | WEAK]},
    "LoRA live": {"lora": "lora_f32", "items": [FOX, TALL | WEAK, TURBO]},
    "LoRA of all layers": {"lora": "lora_all_f32", "items": [FOX | WEAK]},
    "LoKr merged": {"lora": "lokr_full_f16", "items": [FOX, TURBO]},
    "LoKr live": {"lora": "lokr_decomposed_f32", "items": [FOX, TALL | WEAK]},
    "DoRA": {"lora": "dora_f32", "items": [FOX]},
    "both qfloat8, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "qfloat8", "quantize_te": "qfloat8", "items": [FOX, TALL],
    },
    "transformer qfloat8, LoKr live": {
        "lora": "lokr_full_f32", "quantize_transformer": "qfloat8", "items": [FOX | WEAK],
    },
    "transformer qint8, LoRA live": {"lora": "lora_f32", "quantize_transformer": "qint8", "items": [FOX | WEAK]},
    "text encoder qfloat8, LoRA merged": {"lora": "lora_f32", "quantize_te": "qfloat8", "items": [TALL]},
    "training adapter": {"assistant_lora_path": "adapter_f16", "items": [FOX, TURBO]},
    "training adapter, LoRA merged": {"assistant_lora_path": "adapter_f16", "lora": "lora_f32", "items": [FOX | WEAK]},
    "training adapter, LoRA live": {
        "assistant_lora_path": "adapter_f16", "lora": "lora_f32", "items": [TURBO, TALL | WEAK],
    },
    "training adapter, qfloat8, which is float8, LoRA live": {
        "assistant_lora_path": "adapter_f16", "lora": "lora_f32", "quantize_transformer": "qfloat8",
        "quantize_te": "qfloat8", "held_as": "float8", "items": [TURBO, TALL | WEAK],
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, name, dtype):
    job = {"model": "krea2", "checkpoint": str(GOLDEN / "base"), "dtype": dtype} | JOBS[name]
    for key in ("lora", "assistant_lora_path"):
        if key in job:
            job[key] = str(GOLDEN / "lora" / f"{job[key]}.safetensors")
    if "assistant_lora_path" in job:
        job["model"] = "krea2:turbo"
    ai_toolkit("ai_toolkit_krea2_worker.py", job)


# ---- control images -------------------------------------------------------------------------------------------------

IMAGES = [str(GOLDEN.parent / "flux2" / "control" / f"ctrl_{name}.png") for name in ("a", "b", "large")]
ONE, THREE = FOX | {"control": IMAGES[:1]}, TALL | {"control": [IMAGES[1], IMAGES[0], IMAGES[2]]}
FIRST = {"control_keys": ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]}
PRESET = {"edit": True, "kv_cache": True, "match_target_res": True}
EDIT_JOBS = {
    "as the preset": {"model_kwargs": PRESET, "items": [ONE | FIRST, THREE | FIRST]},
    "nothing but edit": {
        "model_kwargs": {"edit": True}, "recipe_options": {"kv_cache": False, "match_target_res": False},
        "items": [ONE | FIRST, THREE | FIRST, FOX],
    },
    "ctrl_img": {"model_kwargs": PRESET, "recipe_options": {"first_image_twice": True}, "items": [ONE, THREE | WEAK]},
    "both qfloat8, LoRA live, in tiles": {
        "model_kwargs": PRESET, "lora": True, "quantize_transformer": "qfloat8", "quantize_te": "qfloat8",
        "low_vram": True, "items": [THREE | FIRST],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def editing(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint whose text encoder has the real one's kinds of positions, and a LoRA for it."""
    folder = make_checkpoint(tmp_path_factory.mktemp("edit") / "tiny")
    return folder, make_lora(folder.parent / "lora.safetensors", folder)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", EDIT_JOBS)
def test_control_images_are_identical_to_the_bit(ai_toolkit, editing, name, dtype):
    folder, lora = map(str, editing)
    job = {"model": "krea2:o_edit", "checkpoint": folder, "dtype": dtype} | EDIT_JOBS[name]
    ai_toolkit("ai_toolkit_krea2_worker.py", job | ({"lora": lora} if "lora" in job else {}))
