"""sd-scripts' own script in its own interpreter, and our nodes in this one, on the same tiny files.

SD_SCRIPTS_PATH=<checkout> SD_SCRIPTS_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "sd_scripts_worker.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "lumina2_sd_scripts"
SETTINGS = ("SD_SCRIPTS_PATH", "SD_SCRIPTS_PYTHON")
TOLERANCE = 1e-5  # float32, between versions of torch; with the same one it is equal to the bit

pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in SETTINGS),
    reason=f"needs sd-scripts: set {' and '.join(SETTINGS)}",
)

PLAIN = {
    "prompt": "a red fox, morning light\nin the snow  ", "negative": "blurry", "system": "Draw.", "seed": 7,
    "width": 96, "height": 112, "steps": 7, "guidance": 4.5, "trunc": 0.25, "renorm": 1.0, "shift": 6.0, "loras": [],
    "merge": False, "system_on_negative": False,
}  # fmt: skip
CASES = {
    "plain": PLAIN,
    "all options": PLAIN | {"trunc": 0.6, "renorm": 0.8, "shift": 3.3, "system_on_negative": True, "system": "A <b>"},
    "empty texts, guidance 1": PLAIN | {"prompt": "", "negative": "", "system": "", "guidance": 1.0, "renorm": 0.0},
    "one step": PLAIN | {"steps": 1},
    "live LoRAs": PLAIN | {"loras": [("lora_unet", 0.7), ("lora_mixed", -0.45)]},
    "merged LoRAs": PLAIN | {"loras": [("lora_unet", 0.7), ("lora_mixed", -0.45), ("lora_te", 1.3)], "merge": True},
    "text encoder LoRA live": PLAIN | {"loras": [("lora_te", 0.85), ("lora_te", -0.3)]},
}
# its live modules are float32, and its Gemma2 runs outside of autocast: the script itself fails
FLOAT_ONLY = ("text encoder LoRA live",)
RUNS = [(name, dtype) for name in CASES for dtype in ("float", "bf16") if dtype == "float" or name not in FLOAT_ONLY]


def _arguments(case: dict, dtype: str) -> dict:
    loras = [f"{GOLDEN / 'lora' / name}.safetensors;{strength}" for name, strength in case["loras"]]
    return {
        "prompt": case["prompt"], "negative_prompt": case["negative"], "system_prompt": case["system"],
        "seed": case["seed"], "image_width": case["width"], "image_height": case["height"], "steps": case["steps"],
        "guidance_scale": case["guidance"], "cfg_trunc_ratio": case["trunc"], "renorm_cfg": case["renorm"],
        "discrete_flow_shift": case["shift"], "merge_lora_weights": case["merge"],
        "add_system_prompt_to_negative_prompt": case["system_on_negative"], "device": "cpu",
        "lora_weights": loras or None,
        "dtype": dtype, "gemma2_dtype": dtype, "ae_dtype": dtype,
    }  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A folder with what the script did in each run, under the run's name."""
    folder = tmp_path_factory.mktemp("theirs")
    jobs = [
        {
            "dit": str(GOLDEN / "lumina2_original.safetensors"),
            "gemma2": str(GOLDEN / "gemma_2_2b.safetensors"),
            "ae": str(GOLDEN / "ae.safetensors"),
            "sizes": json.loads((GOLDEN / "config.json").read_text()),
            "arguments": _arguments(CASES[name], dtype),
            "output": str(folder / f"{name} {dtype}.safetensors"),
        }
        for name, dtype in RUNS
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [os.environ["SD_SCRIPTS_PYTHON"], str(WORKER), os.environ["SD_SCRIPTS_PATH"], str(folder / "jobs.json")]
    environment = {**os.environ, "PYTHONPATH": os.environ["SD_SCRIPTS_PATH"]}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_the_same_picture(theirs, sd_scripts, host, name, dtype):
    path = theirs / f"{name} {dtype}.safetensors"
    recorded = load_file(path)
    with safe_open(path, "pt") as file:
        same_torch = file.metadata()["torch"] == torch.__version__
    if dtype == "bf16" and not same_torch:
        pytest.skip("bfloat16 is compared to the bit, which wants the same torch on both sides")
    graph = sd_scripts(CASES[name], {"float": "float32", "bf16": "bfloat16"}[dtype])
    result = run_prompt(graph, NODE_CLASS_MAPPINGS)

    assert torch.allclose(result.results["sample"][5], recorded["sigmas"], rtol=1e-6, atol=0)
    ours = result.results["sample"][4]["samples"]
    expected = recorded["final_latents"].float() / 0.3611 + 0.1159
    assert (ours - expected).abs().max() <= (TOLERANCE if dtype == "float" else 0)
    (picture,) = host.output.glob("case_*.png")
    pixels = np.asarray(Image.open(picture))
    difference = np.abs(pixels.astype(int) - recorded["image_uint8"].numpy().astype(int))
    assert difference.max() <= (0 if same_torch else 1)
