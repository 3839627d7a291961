"""AI Toolkit's own code of Qwen-Image-Edit, -2509 and -2511 and ours, in one interpreter: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live

In bfloat16 the interpreter needs transformers 5.5.3, as AI Toolkit pins it: see ``tower_rope.py``. The earlier previews
need a checkout of 2026-04-13, and an interpreter with transformers 4.57.3 and diffusers 0.37.1, as
AI_TOOLKIT_EARLIER_PATH and AI_TOOLKIT_EARLIER_PYTHON.
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
    "height": 64, "seed": 7, "steps": 2, "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
WIDE = FOREST | {"width": 96, "height": 64, "seed": 123456789, "negative_prompt": "blurry, low quality"}
ONCE = FOREST | {"guidance": 1.0, "prompt": ""}
ODD = FOREST | {"width": 79, "height": 109}
STRONG = WIDE | {"guidance": 60.0}
WEAK = {"network_multiplier": -0.6}
# above the 256 pixels of a tile; control images, of a megapixel, always are
TILED = FOREST | {"width": 352, "height": 288}


def _with(items: list[dict], *names: str, model: str, keys: tuple[str, ...] | None = None) -> list[dict]:
    files = [str(GOLDEN / model / "control" / f"ctrl_{name}.png") for name in names]
    return [item | {"control": files} | ({"control_keys": keys} if keys else {}) for item in items]


def _edit(*items: dict, name: str = "a") -> dict:
    return {"model": "qwen_image_edit", "items": _with(list(items), name, model="qwen_image_edit")}


def _plus(*items: dict, names: str = "a", keys: tuple[str, ...] | None = None) -> dict:
    keys = keys or tuple(f"ctrl_img_{number}" for number in range(1, len(names.split()) + 1))
    model = "qwen_image_edit_plus"
    return {"model": model, "items": _with(list(items), *names.split(), model=model, keys=keys)}


def _join(*jobs: dict) -> dict:
    return {**jobs[0], "items": [item for job in jobs for item in job["items"]]}


# what is resized already has another size than what is not
MOVES = _plus(FOREST, names="moves")
CALLED_OTHERWISE = _plus(FOREST, keys=("ctrl_img",))
NEWEST = {"model": "qwen_image_edit_plus:2511"}
NORM = {"recipe_options": {"do_cfg_norm": True}}
TWICE = {"recipe_options": {"first_image_twice": True}}
BOTH = {"quantize_transformer": "qfloat8", "quantize_te": "qfloat8"}
LOW_VRAM = {"low_vram": True}
# Qwen-Image's: the edit models' transformers have the same layers
LORA, LOKR, DORA = {"lora": "lora_f32"}, {"lora": "lokr_decomposed_f32"}, {"lora": "dora_f32"}
RECOVERED = {"recovery_adapter": "lora_f16", "quantize_transformer": "uint3"}
JOBS = {
    # a job takes a minute, most of which nobody's arithmetic takes: pictures of one base are one job
    "edit": _join(_edit(WIDE, ONCE, STRONG), _edit(ODD, FOREST | {"width": 200, "height": 40}, name="moves")),
    "edit, tiled": _edit(TILED) | LOW_VRAM,
    "edit, LoRA merged": _edit(FOREST | WEAK) | LORA,
    "edit, LoKr merged": _edit(FOREST | WEAK, ONCE | WEAK) | {"lora": "lokr_full_f16"},
    "edit, LoKr live": _edit(FOREST, WIDE | WEAK) | LOKR,
    "edit, DoRA": _edit(FOREST) | DORA,
    "edit, both qfloat8, LoRA live": _edit(FOREST, WIDE | WEAK) | BOTH | LORA,
    "edit, text encoder qfloat8, LoRA live": _edit(FOREST, ONCE | WEAK) | {"quantize_te": "qfloat8"} | LORA,
    "plus": _join(_plus(WIDE, ONCE, ODD, STRONG), _plus(FOREST, names="b a"), _plus(FOREST, names="c a b"), MOVES),
    "plus, ctrl_img": _join(CALLED_OTHERWISE, _plus(WIDE, names="a b", keys=("ctrl_img", "ctrl_img_2"))) | TWICE,
    "plus, CFG norm": _plus(STRONG | {"do_cfg_norm": True}, FOREST | {"do_cfg_norm": True}) | NORM,
    "plus, tiled": _plus(TILED, names="a b") | LOW_VRAM,
    "plus, LoRA merged": _plus(FOREST | WEAK) | LORA,
    "plus, LoKr by a factor merged": _plus(FOREST | WEAK, names="a b") | {"lora": "lokr_factor_f16"},
    "plus, LoKr live": _plus(FOREST, WIDE | WEAK) | LOKR,
    "plus, LoKr in the old format": _plus(FOREST) | {"lora": "lokr_old_decomposed_f32"},
    "plus, both qfloat8, LoKr live": _plus(FOREST | WEAK) | BOTH | {"lora": "lokr_full_f32"},
    "plus, DoRA": _plus(FOREST) | DORA,
    "plus, recovery adapter, LoRA live": _plus(FOREST, WIDE | WEAK) | RECOVERED | LORA,
    "plus, both qfloat8, LoRA live": _plus(FOREST, WIDE | WEAK, names="a b") | BOTH | LORA,
    "plus, transformer qfloat8": _plus(FOREST) | {"quantize_transformer": "qfloat8"},
    "2511": _join(_plus(WIDE, names="a b"), _plus(ONCE)) | NEWEST,
    "2511, LoRA merged": _plus(FOREST | WEAK) | NEWEST | LORA,
    "2511, LoKr merged": _plus(FOREST | WEAK) | NEWEST | {"lora": "lokr_full_f16"},
    "2511, LoKr live": _plus(FOREST, WIDE | WEAK) | NEWEST | LOKR,
    "2511, DoRA": _plus(FOREST) | NEWEST | DORA,
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
def test_identical_to_the_bit(request, ai_toolkit, base_2511, name, dtype):
    if dtype == "bf16":
        request.getfixturevalue("pinned_towers")
    job = {"dtype": dtype} | JOBS[name]
    golden = GOLDEN / job["model"].partition(":")[0]
    job["checkpoint"] = str(base_2511 if ":" in job["model"] else golden / "base")
    for key in ("lora", "recovery_adapter"):
        if key in job:
            job[key] = str(GOLDEN / "qwen_image" / "lora" / f"{job[key]}.safetensors")
    ai_toolkit(WORKER, job)


EARLIER = {
    "edit": _edit(WIDE, FOREST | {"width": 79, "height": 109}),
    "plus": _join(_plus(WIDE, names="b a"), _plus(FOREST, names="c a b")),
}


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", EARLIER)
def test_earlier_previews_are_identical_to_the_bit(earlier_ai_toolkit, like_transformers_4, name, dtype):
    job = {"dtype": dtype, "checkpoint": str(like_transformers_4), "recipe": "trainer preview until 2026-04-13"}
    earlier_ai_toolkit(WORKER, job | EARLIER[name])
