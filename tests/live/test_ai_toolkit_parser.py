"""AI Toolkit's own parser and ours on generated configs: the same settings, of the same types, or the same exception.

AI_TOOLKIT_PATH=<checkout> AI_TOOLKIT_PYTHON=<interpreter that can run it> python3 tasks.py test tests/live
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.jobs.config_text import parse_yaml, plain
from comfyui_aitk.pipelines.jobs.sample_section import Random, Settings, TrainerRefusal, read_section

HERE = Path(__file__).parent
SETTINGS = ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON")
CASES = 1500
FULL_WIDTH = "'\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}'"
# YAML as people write it: numbers of every spelling, words of YAML 1.1, quotes, lists, what is no value at all
SCALARS = (
    "0", "1", "-1", "42", "512", "640.0", "1000.5", "010", "0x10", "0b11", "1_000", "1e3", "1.5e3", "-2e-1", "1:30",
    "1:30.5", ".5", "4.", "1.", "+7", "-0", ".inf", "-.inf", ".nan", "._5", "1e", "yes", "no", "on", "off", "true", "~",
    "null", "'x'", "''", '"a b"', "'640'", "'1.5'", "[1]", "{a: 1}", "[]", "18446744073709551616", "2024-01-01",
    "-9223372036854775809", "!!str 5", "nan", "'-1'", "'1_0'", "abc", "0o7", "00", "08", "1__2", "1_.", FULL_WIDTH, "=",
)  # fmt: skip
PIECES = (
    "a fox", "[trigger]", "[name]", " -- ", "--w 640", "--w640", "--h\t70", "--d -1", "--seed 7 ", "--l 3,5", "--cfg 2",
    "--s 12", "--steps 1_0", "--m 0.5", "--network_multiplier nan", "--n blurry", "--gr", "--ev 1,2", "--ref x",
    "--frames 1", "--num_frames 2", "--fps 3", "--ctrl_img a.png", "--ctrl_idx 1", "\n--w 64", "---", "--W 64",
    "--p2 q", "--a 1", "--w  " + FULL_WIDTH.strip("'"), "--h 99999",
)  # fmt: skip
KEYS = (
    "width", "height", "neg", "seed", "guidance_scale", "sample_steps", "network_multiplier", "num_frames", "ctrl_img",
    "ctrl_img_1", "ctrl_img_2", "ctrl_img_3", "walk_seed", "sampler", "format",
)  # fmt: skip


def some_config(dice: random.Random) -> str:
    """A job's config, most of whose sections are those of a usual job, with odd values here and there."""

    def prompt() -> str:
        if dice.random() < 0.08:
            return dice.choice(SCALARS)
        text = dice.choice(("", " ")).join(dice.choices(PIECES, k=dice.randint(0, 4)))
        return json.dumps(text, ensure_ascii=dice.random() < 0.5)

    def settings(most: int) -> list[str]:
        keys = dice.sample(KEYS, dice.randint(0, most))
        return [f"{key}: {dice.choice(SCALARS) if dice.random() < 0.5 else dice.randint(-1, 900)}" for key in keys]

    section = [f"neg: {dice.choice(('no', chr(39) * 2, 'x'))}", *settings(3)]
    prompts = [prompt() for _ in range(dice.randint(0, 4))]
    if dice.random() < 0.7:
        # YAML takes the last of two equal keys
        items = [", ".join([f"prompt: {text}", *settings(2)][dice.random() < 0.05 :]) for text in prompts]
        section.append(f"samples: [{', '.join(f'{{{item}}}' for item in items)}]")
    if dice.random() < 0.4:
        section.append(f"prompts: [{', '.join(prompts)}]" if dice.random() < 0.9 else f"prompts: {prompt()}")
    trigger = dice.choice(("~", "tr1g", "[name]", "'a --w 64'", "yes", "5", "''"))
    process = f"type: sd_trainer, trigger_word: {trigger}, sample: {{{', '.join(section)}}}"
    return f"job: extension\nconfig: {{name: {dice.choice(('job', 'My Lora'))}, process: [{{{process}}}]}}\n"


def told(value):
    if isinstance(value, Random):
        value = "random"
    odd = isinstance(value, float) and not math.isfinite(value)
    return [type(value).__name__, str(value) if odd else value]


def ours(text: str) -> dict:
    try:
        config = parse_yaml(text, "the config")
        process = plain(config, config["config"]["name"])["config"]["process"][0]
        found = read_section(process.get("sample"), process.get("trigger_word"))
        if found.refusal is not None:
            raise found.refusal
    except TrainerRefusal as refusal:
        return {"error": refusal.kind, "stage": refusal.stage}
    except (FileError, TypeError, ValueError):
        return {"error": "no config", "stage": "config"}
    names = [field.name for field in fields(Settings)]
    items = [{name: told(getattr(picture, name)) for name in names} for picture in found.pictures]
    return {"items": items, "sampler": told(found.sampler), "format": told(found.extension)}


def test_generated_configs(tmp_path):
    if not all(os.environ.get(name) for name in SETTINGS):
        pytest.skip(f"needs AI Toolkit: set {' and '.join(SETTINGS)}")
    dice = random.Random(13)
    texts = [some_config(dice) for _ in range(CASES)]
    (tmp_path / "configs.json").write_text(json.dumps(texts), "utf-8")
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(HERE / "ai_toolkit_parser_worker.py")]
    environment = {**os.environ, "PYTHONPATH": os.environ["AI_TOOLKIT_PATH"]}
    result = subprocess.run(
        [*command, str(tmp_path / "configs.json"), str(tmp_path / "out.json")],
        capture_output=True, text=True, timeout=600, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    theirs = json.loads((tmp_path / "out.json").read_text("utf-8"))
    wrong = []
    for text, expected in zip(texts, theirs, strict=True):
        found = json.loads(json.dumps(ours(text)))
        if found.get("error") == "no config":
            # which exception a broken config raises is PyYAML's and JSON's
            found["error"] = expected.get("error")
        if found != expected:
            wrong.append((text, expected, found))
    assert not wrong, f"{len(wrong)} of {CASES}, the first: {wrong[0]}"
    # most of them are read, and both stages fail in some
    assert sum("items" in one for one in theirs) > CASES / 4
    assert {one["stage"] for one in theirs if "error" in one} == {"config", "sample"}
