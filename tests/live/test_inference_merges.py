"""ai-toolkit-inference's own merges and those of the reference recipes, in one interpreter: identical to the bit.

AITI_PATH=<checkout> AITI_PYTHON=<interpreter that can run both> AI_TOOLKIT_PATH=<checkout> \\
    python3 tasks.py test tests/live/test_inference_merges.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, krea2, omnigen2, qwen_image, qwen_image_edit

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "flux2_klein_4b": lambda folder: flux2.make_checkpoint(folder, "flux2_klein_4b"),
    "krea2": krea2.make_checkpoint,
    "omnigen2": omnigen2.make_checkpoint,
    "qwen_image:2512": qwen_image.make_checkpoint,
    "qwen_image_edit_plus:2511": lambda folder: qwen_image_edit.make_checkpoint(folder, zero_time=True),
}
PLAIN = {"rank": 5}
# neither alpha nor alpha / rank is a number that bfloat16 has
SCALED = {"rank": 6, "alpha": 22.627417, "dtype": torch.float32}
JOBS = {
    "2512, LoRA": ("qwen_image:2512", qwen_image.make_lora, PLAIN),
    "2512, float32 with alpha": ("qwen_image:2512", qwen_image.make_lora, SCALED),
    "2511, LoRA": ("qwen_image_edit_plus:2511", qwen_image.make_lora, PLAIN),
    "Krea 2, LoRA": ("krea2", krea2.make_lora, PLAIN),
    "Krea 2, float32 with alpha": ("krea2", krea2.make_lora, SCALED),
    "Krea 2, LoKr of whole factors": ("krea2", krea2.make_lokr, {}),
    "Krea 2, LoKr": ("krea2", krea2.make_lokr, {"rank": 3, "alpha": 2.0, "dtype": torch.float32}),
    "FLUX.2-klein, float16": ("flux2_klein_4b", flux2.make_lora, PLAIN | {"dtype": torch.float16}),
    "FLUX.2-klein, float32 with alpha": ("flux2_klein_4b", flux2.make_lora, SCALED),
    "OmniGen2, LoRA": ("omnigen2", omnigen2.make_lora, PLAIN),
    "OmniGen2, float16": ("omnigen2", omnigen2.make_lora, PLAIN | {"dtype": torch.float16}),
    "OmniGen2, float32": ("omnigen2", omnigen2.make_lora, PLAIN | {"dtype": torch.float32}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(model: str) -> Path:
        if model not in made:
            made[model] = CHECKPOINTS[model](tmp_path_factory.mktemp("models") / "tiny")
        return made[model]

    return get


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_merged_to_the_same_bits(inference_merges, folders, tmp_path, name, dtype):
    model, make, options = JOBS[name]
    lora = make(tmp_path / "lora.safetensors", folders(model), **options)
    job = {"model": model, "checkpoint": str(folders(model)), "dtype": dtype, "lora": str(lora)}
    inference_merges(job | {"strengths": [1.0, -0.7]})
