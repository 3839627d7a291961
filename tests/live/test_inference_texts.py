"""What the text encoder of the edit models gives to ai-toolkit-inference and to the reference recipe: the same bits.

It needs transformers 4.57.3, which ai-toolkit-inference pins and which gives a picture's rows positions in a grid:

AITI_PATH=<checkout> AITI_PYTHON=<interpreter with transformers 4.57.3> AI_TOOLKIT_PATH=<checkout> \\
    python3 tasks.py test tests/live/test_inference_texts.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

CONTROL = Path(__file__).parents[1] / "golden" / "qwen_image_edit_plus" / "control"
TEXTS = {"prompt": "turn the background into a forest and keep the person unchanged", "negative_prompt": "blurry"}
# odd sizes: c is 155 x 64 pixels
PICTURES = {"qwen_image_edit": ("a", "c", "moves"), "qwen_image_edit_plus": ("a", "b a", "c a b", "moves c")}


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("model", PICTURES)
def test_the_same_embeddings(inference_texts, like_transformers_4, model, dtype):
    items = [
        TEXTS | {"control": [str(CONTROL / f"ctrl_{own}.png") for own in names.split()]} for names in PICTURES[model]
    ]
    inference_texts({"model": model, "checkpoint": str(like_transformers_4), "dtype": dtype, "items": items})
