"""AI Toolkit's own Z-Image code and ours, in one interpreter, on recorded tiny files: identical to the bit.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.z_image import make_checkpoint, make_lokr, make_lora
from comfyui_aitk.pipelines.options import RECOVERY_TYPES

GOLDEN = Path(__file__).parents[1] / "golden" / "zimage"

FOX = {
    "prompt": "a red fox, morning light", "negative_prompt": "", "width": 64, "height": 64, "seed": 7, "steps": 3,
    "guidance": 4.0, "network_multiplier": 1.0,
}  # fmt: skip
TALL = FOX | {"width": 80, "height": 112, "seed": 123456789, "negative_prompt": "blurry", "guidance": 2.5, "steps": 5}
LONG = FOX | {"prompt": "a red fox in the snow, " * 120, "negative_prompt": "fog \n", "guidance": 1.25}
TURBO = FOX | {"steps": 9, "guidance": 1.0}
PLAIN = FOX | {"guidance": 1.0, "prompt": ""}
WEAK = {"network_multiplier": -0.6}
QTYPES = ("float8", "int8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2", "qint4", "qint2", "qfloat8_e5m2",
          "qfloat8_e4m3fnuz")  # fmt: skip
SIZES = [FOX | {"width": width, "height": height} for width, height in ((72, 104), (79, 109), (144, 80))]
JOBS = {
    "text": {"items": [FOX, TALL, LONG]},
    "guidance 1": {"items": [TURBO, PLAIN, FOX | {"guidance": 0.5}]},
    "odd sizes": {"items": SIZES},
    "LoRA merged": {"lora": "lora_f16", "items": [FOX | WEAK, TALL | WEAK]},
    "LoRA live": {"lora": "lora_f32", "items": [FOX, TALL | WEAK, TURBO]},
    "LoRA of all layers": {"lora": "lora_all_f32", "items": [FOX | WEAK]},
    "LoKr merged": {"lora": "lokr_full_f16", "items": [FOX, TURBO]},
    "LoKr live": {"lora": "lokr_decomposed_f32", "items": [FOX, TALL | WEAK]},
    "LoKr in the old format": {"lora": "lokr_old_decomposed_f32", "items": [FOX]},
    "DoRA": {"lora": "dora_f32", "items": [FOX]},
    "both qfloat8, LoRA live": {
        "lora": "lora_f32", "quantize_transformer": "qfloat8", "quantize_te": "qfloat8", "items": [FOX, TALL],
    },
    "transformer qfloat8, LoKr live": {
        "lora": "lokr_full_f32", "quantize_transformer": "qfloat8", "items": [FOX | WEAK],
    },
    "transformer qint8": {"quantize_transformer": "qint8", "items": [FOX, TURBO]},
    "transformer qint8, LoRA live": {"lora": "lora_f32", "quantize_transformer": "qint8", "items": [FOX | WEAK]},
    "text encoder qint8": {"quantize_te": "qint8", "items": [FOX]},
    "text encoder qfloat8, LoRA merged": {"lora": "lora_f32", "quantize_te": "qfloat8", "items": [TALL]},
    "transformer uint4, DoRA": {"lora": "dora_f32", "quantize_transformer": "uint4", "items": [FOX]},
    "text encoder float8, LoRA merged": {"lora": "lora_f32", "quantize_te": "float8", "items": [TALL]},
    "training adapter": {"assistant_lora_path": "adapter_f16", "items": [FOX, TURBO]},
    "training adapter, LoRA merged": {"assistant_lora_path": "adapter_f16", "lora": "lora_f32", "items": [FOX | WEAK]},
    "training adapter, LoRA live": {
        "assistant_lora_path": "adapter_f16", "lora": "lora_f32", "items": [TURBO, TALL | WEAK],
    },
    "training adapter, qfloat8, which is float8, LoRA live": {
        "assistant_lora_path": "adapter_f16", "lora": "lora_f32", "quantize_transformer": "qfloat8",
        "quantize_te": "qfloat8", "held_as": "float8", "items": [TURBO, TALL | WEAK],
    },
    "recovery adapter, DoRA above": {
        "recovery_adapter": "lora_all_f32", "lora": "dora_f32", "quantize_transformer": "uint4", "items": [FOX],
    },
    "training adapter, uint4": {
        "assistant_lora_path": "adapter_f16", "quantize_transformer": "uint4", "items": [TURBO],
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("name", JOBS)
def test_identical_to_the_bit(ai_toolkit, name, dtype):
    job = {"model": "zimage", "checkpoint": str(GOLDEN / "base"), "dtype": dtype} | JOBS[name]
    for key in ("lora", "assistant_lora_path", "recovery_adapter"):
        if key in job:
            job[key] = str(GOLDEN / "lora" / f"{job[key]}.safetensors")
    if "assistant_lora_path" in job:
        job["model"] = "zimage:turbo"
    ai_toolkit("ai_toolkit_z_image_worker.py", job)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint most of whose layers have whole groups of 64 columns, unlike the recorded one, and a LoRA for it."""
    folder = make_checkpoint(tmp_path_factory.mktemp("wide") / "tiny")
    return folder, make_lora(folder.parent / "lora.safetensors", folder)


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("qtype", QTYPES)
def test_every_type_of_weights_is_identical_to_the_bit(ai_toolkit, wide, qtype, dtype):
    folder, lora = map(str, wide)
    job = {"model": "zimage", "checkpoint": folder, "lora": lora, "dtype": dtype, "items": [FOX | WEAK]}
    ai_toolkit("ai_toolkit_z_image_worker.py", job | {"quantize_transformer": qtype, "quantize_te": qtype})


@pytest.fixture(scope="module")
def adapters(wide) -> dict[str, str]:
    """Recovery adapters for it, and LoRAs above them."""
    folder, lora = wide
    files = {
        "lora": lora,
        # the refiners' and embedders' layers too, of which some have no whole groups
        "all": make_lora(folder.parent / "all.safetensors", folder, transformer_only=False, rank=8, seed=5),
        "lokr": make_lokr(folder.parent / "lokr.safetensors", folder),
        # which is not read of a recovery adapter
        "alpha": make_lora(folder.parent / "alpha.safetensors", folder, rank=2, alpha=3.0, seed=6),
        "lycoris": make_lokr(folder.parent / "lycoris.safetensors", folder, factor=4, old_format=True, seed=7),
    }
    return {name: str(path) for name, path in files.items()}


RECOVERED = {
    **{f"{qtype}, LoRA live": {"qtype": qtype, "above": "lora"} for qtype in RECOVERY_TYPES},
    "in float32": {"above": "lora", "dtype": "float32"},
    "nothing above": {},
    "LoKr above": {"above": "lokr"},
    "with alpha": {"recovery": "alpha", "above": "lora"},
    "a LyCORIS LoKr": {"recovery": "lycoris", "above": "lora"},
    "a LyCORIS LoKr in float32": {"recovery": "lycoris", "dtype": "float32"},
    "a LyCORIS LoKr, uint8": {"recovery": "lycoris", "qtype": "uint8", "above": "lokr"},
}


@pytest.mark.parametrize("name", RECOVERED)
def test_on_a_recovery_adapter_it_is_identical_to_the_bit(ai_toolkit, wide, adapters, name):
    case = {"recovery": "all", "qtype": "uint3", "above": None, "dtype": "bf16"} | RECOVERED[name]
    job = {
        "model": "zimage", "checkpoint": str(wide[0]), "dtype": case["dtype"], "items": [FOX | WEAK, FOX],
        "lora": case["above"] and adapters[case["above"]], "recovery_adapter": adapters[case["recovery"]],
        "quantize_transformer": case["qtype"],
    }  # fmt: skip
    ai_toolkit("ai_toolkit_z_image_worker.py", job)
