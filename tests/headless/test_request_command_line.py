"""Command lines of sd-scripts: read as its script reads them, and rendered to the pixels that it recorded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.request.command import request_command
from comfyui_aitk.headless.request.command_line import read_command_line
from comfyui_aitk.pipelines.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("kept_engine")

GOLDEN = Path(__file__).parents[1] / "golden" / "lumina2_sd_scripts"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]


def line_of(case: dict, dtype: str = "float") -> str:
    """The command line of a recorded case."""
    flags = {
        "pretrained_model_name_or_path": "/data/lumina2_original.safetensors", "gemma2_path": "gemma_2_2b.safetensors",
        "ae_path": "models/ae.safetensors", "prompt": case["prompt"], "negative_prompt": case["negative"],
        "system_prompt": case["system"], "seed": case["seed"], "image_width": case["width"],
        "image_height": case["height"], "steps": case["steps"], "guidance_scale": case["guidance"],
        "cfg_trunc_ratio": case["trunc"], "renorm_cfg": case["renorm"], "discrete_flow_shift": case["shift"],
        "dtype": dtype, "gemma2_dtype": dtype, "ae_dtype": dtype, "output_dir": "outputs",
    }  # fmt: skip
    words = ["python", "lumina_minimal_inference.py", "--offload"]
    words += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--merge_lora_weights"] if case["merge"] else []
    words += ["--add_system_prompt_to_negative_prompt"] if case["system_on_negative"] else []
    if case["loras"]:
        words += ["--lora_weights", *(f"out/{name}.safetensors;{strength}" for name, strength in case["loras"])]
    return shlex.join(words).replace(" --steps", " \\\n  --steps")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_command_line_is_the_recorded_picture(case, sd_scripts_models, tmp_path, capsys):
    output = tmp_path / "pictures"
    arguments = ["--sd-scripts", line_of(case), "--models", str(sd_scripts_models), "--output", str(output)]
    assert request_command([*arguments, "--device", "cpu"]) == 0, capsys.readouterr().err
    picture = np.asarray(Image.open(capsys.readouterr().out.strip())).astype(int)
    recorded = load_file(GOLDEN / case["tensors"])["image_uint8"].numpy()
    # as near as tests/pipelines/test_golden_sd_scripts.py asks of the nodes
    assert np.abs(picture - recorded).max() <= 1
    assert (picture != recorded).mean() < 0.01


FILES = "--pretrained_model_name_or_path a.safetensors --gemma2_path b.safetensors --ae_path c.safetensors "


def test_defaults_of_a_command_line_are_the_script_s():
    found = read_command_line(FILES + "--lora_weights x.safetensors 'y.safetensors;-0.5' --use_flash_attn", lambda: 7)
    (picture,) = found.pictures
    assert (picture.width, picture.height, picture.steps, picture.guidance_scale, picture.seed) == (
        1024, 1024, 36, 3.5, 7,
    )  # fmt: skip
    assert (picture.prompt, picture.negative_prompt, picture.system_prompt) == (
        "A beautiful sunset over the mountains", "", "",
    )  # fmt: skip
    assert [(lora.name, lora.strength, lora.application) for lora in found.loras] == [
        ("x.safetensors", 1.0, "live"),
        ("y.safetensors", -0.5, "live"),
    ]
    assert (found.dtype, found.attention, found.recipe) == ("bfloat16", "flash", "sd-scripts")
    assert found.notes == ("--seed is not given: 7 was drawn",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: --pretrained_model_name_or_path, --gemma2_path, --ae_path"),
        (FILES + "--stepz 4 --scale 1", "has no argument '--stepz', '--scale'"),
        (FILES + "--steps four", "argument --steps: invalid int value: 'four'"),
        (FILES + "--prompt 'open", "cannot be split: No closing quotation"),
        (FILES + "--dtype fp8", "--dtype is 'fp8'. Choose one of: bf16"),
        (FILES + "--dtype fp16", "in --dtype fp16, --gemma2_dtype bf16, --ae_dtype bf16. Give all the same"),
        (FILES + "--interactive", "--interactive asks for prompts as it goes"),
        (FILES + "--gemma2_max_token_length 512", "is 512, and this pack has 256 alone"),
        (FILES + "--seed -1", "--seed is -1: choose 0 to"),
        (FILES + "--lora_weights 'a.safetensors;much'", "is no 'path;multiplier'"),
        (FILES, "'b.safetensors' is not there. Put it into the folder 'text_encoders' of --models"),
    ],
)
def test_a_command_line_is_refused_by_the_argument_s_name(line, message, sd_scripts_models, tmp_path, capsys):
    arguments = ["--sd-scripts", line, "--models", str(sd_scripts_models), "--output", str(tmp_path)]
    assert request_command(arguments) == 1
    assert message in capsys.readouterr().err


@given(st.text(max_size=60) | st.lists(st.sampled_from([*FILES.split(), "--steps", "4", "--p"])).map(" ".join))
def test_any_command_line_is_read_or_refused(line):
    try:
        assert read_command_line(line, lambda: 0).weights.weights
    except InputError as error:
        assert "--sd-scripts: " in str(error)
