"""AI Toolkit's own code of Qwen-Image-Edit, -2509 and -2511 and ours, in one interpreter: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
WORKER = "ai_toolkit_qwen_image_edit_worker.py"
FOREST = {
    "prompt": "turn the background into a forest and keep the person unchanged", "negative_prompt": "", "width": 64,
    "height": 64, "seed": 7, "steps": 3, "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
WIDE = FOREST | {"width": 96, "height": 64, "seed": 123456789, "negative_prompt": "blurry, low quality"}
ONCE = FOREST | {"guidance": 1.0, "prompt": ""}
ODD = FOREST | {"width": 79, "height": 109}
STRONG = WIDE | {"guidance": 60.0, "steps": 2}
WEAK = {"network_multiplier": -0.6}
# above the 256 pixels of a tile; control images, of a megapixel, always are
TILED = FOREST | {"width": 352, "height": 288, "steps": 2}


def _with(items: list[dict], *names: str, model: str, keys: tuple[str, ...] | None = None) -> list[dict]:
    files = [str(GOLDEN / model / "control" / f"ctrl_{name}.png") for name in names]
    return [item | {"control": files} | ({"control_keys": keys} if keys else {}) for item in items]


def _edit(*items: dict, name: str = "a") -> dict:
    # both keys: AI Toolkit's text encoder takes the first that there is, its autoencoder ctrl_img
    return {"model": "qwen_image_edit", "items": _with(list(items), name, model="qwen_image_edit")}


def _plus(*items: dict, names: str = "a", keys: tuple[str, ...] | None = None) -> dict:
    keys = keys or tuple(f"ctrl_img_{number}" for number in range(1, len(names.split()) + 1))
    model = "qwen_image_edit_plus"
    return {"model": model, "items": _with(list(items), *names.split(), model=model, keys=keys)}


NEWEST = {"model": "qwen_image_edit_plus:2511"}
NORM = {"recipe_options": {"do_cfg_norm": True}}
TWICE = {"recipe_options": {"first_image_twice": True}}
BOTH = {"quantize_transformer": "qfloat8", "quantize_te": "qfloat8"}
LOW_VRAM = {"low_vram": True, "options": {"vae_tiling": True}}
JOBS = {
    "edit": _edit(FOREST, WIDE, ONCE),
    "edit, odd sizes": _edit(ODD, FOREST | {"width": 200, "height": 40}, name="moves"),
    "edit, guidance 60": _edit(STRONG),
    "edit, tiled": _edit(TILED) | LOW_VRAM,
    "edit, LoRA merged": _edit(FOREST | WEAK, WIDE | WEAK) | {"lora": "lora_f32"},
    "edit, LoRA live": _edit(FOREST, WIDE | WEAK) | {"lora": "lora_f32"},
    "edit, both qfloat8, LoRA live": _edit(FOREST, WIDE) | BOTH | {"lora": "lora_f32"},
    "edit, text encoder qfloat8": _edit(FOREST) | {"quantize_te": "qfloat8"},
    "plus": _plus(FOREST, WIDE, ONCE),
    "plus, two control images": _plus(WIDE, names="a b"),
    "plus, three control images": _plus(FOREST, ONCE, names="c a b"),
    "plus, a picture that is resized twice": _plus(FOREST, names="moves"),
    "plus, ctrl_img": _plus(FOREST, WIDE, keys=("ctrl_img",)) | TWICE,
    "plus, ctrl_img and ctrl_img_2": _plus(WIDE, names="a b", keys=("ctrl_img", "ctrl_img_2")) | TWICE,
    "plus, odd sizes": _plus(ODD),
    "plus, guidance 60": _plus(STRONG),
    "plus, CFG norm": _plus(STRONG | {"do_cfg_norm": True}, FOREST | {"do_cfg_norm": True}) | NORM,
    "plus, tiled": _plus(TILED, names="a b") | LOW_VRAM,
    "plus, LoRA merged": _plus(FOREST | WEAK) | {"lora": "lora_f32"},
    "plus, LoRA live": _plus(FOREST, WIDE | WEAK, names="a b") | {"lora": "lora_f32"},
    "plus, both qfloat8, LoRA live": _plus(FOREST, WIDE) | BOTH | {"lora": "lora_f32"},
    "plus, transformer qfloat8": _plus(FOREST) | {"quantize_transformer": "qfloat8"},
    "2511": _plus(FOREST, WIDE, names="a b") | NEWEST,
    "2511, LoRA merged, guidance 1": _plus(ONCE) | NEWEST | {"lora": "lora_f32"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base_2511(tmp_path_factory) -> Path:
    """The recorded 2509, whose reference tokens have another time: all that 2511's configuration says otherwise."""
    folder = tmp_path_factory.mktemp("2511") / "base"
    shutil.copytree(GOLDEN / "qwen_image_edit_plus" / "base", folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zero_cond_t": True}))
    return folder


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, base_2511, name, dtype):
    job = {"dtype": dtype} | JOBS[name]
    golden = GOLDEN / job["model"].partition(":")[0]
    job["checkpoint"] = str(base_2511 if ":" in job["model"] else golden / "base")
    if "lora" in job:
        job["lora"] = str(golden / "lora" / f"{job['lora']}.safetensors")
    ai_toolkit(WORKER, job)
