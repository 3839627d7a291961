"""Sample sections as AI Toolkit's own parser reads them: 462 recorded cases, and generated ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.jobs.config_text import parse_yaml, plain
from comfyui_aitk.pipelines.jobs.job_samples import job_samples
from comfyui_aitk.pipelines.jobs.sample_section import Failed, Random, Settings, TrainerRefusal, read_section
from hypothesis import given
from hypothesis import strategies as st

RECORDED = json.loads((Path(__file__).parents[2] / "golden/jobs/parser_cases.json").read_text("utf-8"))["cases"]
# a recorded value -> what it is called here
KEYS = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "width": "width", "height": "height", "steps": "steps",
    "guidance": "guidance_scale", "multiplier": "multiplier", "num_frames": "num_frames", "ctrl_img": "ctrl_img",
    "ctrl_img_1": "ctrl_img_1", "ctrl_img_2": "ctrl_img_2", "ctrl_img_3": "ctrl_img_3", "seed": "seed",
}  # fmt: skip
# what a model's recipe takes of control images, which the recording says for two models
TAKEN = {"flux2": 3, "omnigen2": 1}


def read(case):
    """The round of a recorded input, the way that the config goes before it reaches the section."""
    data = parse_yaml(case["yaml"], "the config") if "yaml" in case else {"sample": case["sample"]}
    try:
        process = plain(data | {"trigger_word": case["trigger_word"]}, case.get("name", "job_a"))
    except TypeError as error:
        raise TrainerRefusal("TypeError", "config", str(error)) from error
    return read_section(process["sample"], process["trigger_word"])


def told(value):
    """A value and its type, as the recording writes it down."""
    if isinstance(value, Random):
        value = "random"
    elif isinstance(value, float) and not math.isfinite(value):
        value = {"float": str(value)}
    return type(value).__name__, value


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: str(case["id"]))
def test_recorded_case(case):
    expected = case["expected"]
    if "error" in expected:
        try:
            refusal = read(case["input"]).refusal
        except TrainerRefusal as error:
            refusal = error
        assert refusal is not None
        assert (refusal.kind, refusal.stage) == (expected["error"], expected["stage"])
        return
    found = read(case["input"])
    assert found.sampler == expected["sampler"]
    assert found.one_multiplier == expected["one_multiplier"]
    assert len(found.pictures) == len(expected["items"])
    for index, (picture, item) in enumerate(zip(found.pictures, expected["items"], strict=True)):
        assert isinstance(picture, Settings)
        for key, name in KEYS.items():
            assert told(getattr(picture, name)) == told(item[key]), key
        assert item["file"] == f"[time]__000000250_{index}.{found.extension}"
        for model, taken in TAKEN.items():
            (sample,) = [one for one in job_samples(found, taken) if one.index == index]
            assert list(sample.control_images) == item[model]["control_images"]
            if "seed_error" in item:
                assert "seed" in sample.problem


def test_there_are_as_many_cases_as_were_recorded():
    assert len(RECORDED) == 462


def test_a_seed_of_the_section_is_what_torch_makes_of_it():
    import torch

    for seed, of_torch in (
        ("42", 42),
        (-3, -3),
        (1000.5, 1000),
        (True, 1),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
    ):
        (sample,) = job_samples(read_section({"neg": "", "seed": seed, "prompts": ["a"]}, None), 0)
        assert sample.seed == torch.manual_seed(of_torch).initial_seed()
        assert not sample.problem
    for seed in (2**64, -(2**63) - 1, "x", [1], None, math.inf):
        (sample,) = job_samples(read_section({"neg": "", "seed": seed, "prompts": ["a"]}, None), 0)
        assert sample.seed is None
        assert "seed" in sample.problem
    (sample,) = job_samples(read_section({"neg": "", "seed": -1, "prompts": ["a"]}, None), 0)
    assert sample.seed is None
    assert "at random" in sample.problem


def test_what_no_picture_can_be_rendered_with_is_said():
    items = [
        {"prompt": "a", "neg": False}, {"prompt": "a", "width": 640.0}, {"prompt": "a", "sample_steps": "20"},
        {"prompt": "a", "guidance_scale": None}, {"prompt": "a", "network_multiplier": None},
        {"prompt": "a", "num_frames": 5}, {"prompt": "a --w x"}, {"prompt": 5}, {"prompt": "a", "ctrl_img": 3},
        {"prompt": "a"},
    ]  # fmt: skip
    samples = job_samples(read_section({"neg": "", "samples": items}, None), 1)
    words = ("neg", "width", "steps", "guidance", "multiplier", "video", "'x'", "prompt", "control image")
    assert len(samples) == len(items)
    for sample, word in zip(samples, words, strict=False):
        assert word in sample.problem
    assert samples[-1].problem == ""


def test_a_sample_that_fails_leaves_the_others():
    found = read_section({"neg": "", "seed": 7, "samples": [{"prompt": "a --w x"}, {"prompt": "b"}]}, None)
    assert isinstance(found.pictures[0], Failed)
    bad, good = job_samples(found, 0)
    assert (bad.prompt, good.prompt, good.problem) == ("a --w x", "b", "")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SETTINGS = (
    "prompt", "width", "height", "neg", "seed", "guidance_scale", "sample_steps", "network_multiplier", "num_frames",
    "ctrl_img", "ctrl_img_1", "walk_seed", "format", "sampler",
)  # fmt: skip
ITEM = st.dictionaries(st.sampled_from(SETTINGS), ANY, max_size=6)
SECTION = st.builds(
    lambda section, samples: section | samples,
    st.dictionaries(st.sampled_from(SETTINGS[1:]), ANY, max_size=6),
    st.fixed_dictionaries({}, optional={"samples": st.lists(ITEM, max_size=4) | ANY, "prompts": ANY}),
)


@given(SECTION | ANY, st.none() | st.text(max_size=5) | ANY)
def test_any_section_is_read_or_refused_as_the_trainer_refuses(section, trigger):
    try:
        found = read_section(section, trigger)
    except TrainerRefusal as refusal:
        assert refusal.stage == "config"
        return
    for index, sample in enumerate(job_samples(found, 3)):
        assert sample.index == index
        assert isinstance(sample.prompt, str)
        if not sample.problem:
            assert sample.width % 8 == sample.height % 8 == 0
            assert 0 <= (sample.seed or 0) < 2**64
            assert math.isfinite(sample.guidance_scale)


WORDS = st.lists(
    st.sampled_from(["a fox", "--", "--w", "--h 70", " ", "--d 7", "\n", "--n", "x", "640", "--m 0.5", "-"]), max_size=8
).map(" ".join)


@given(WORDS)
def test_flags_are_what_follows_the_first_two_hyphens(text):
    (picture,) = read_section({"prompts": [text]}, None).pictures
    if isinstance(picture, Settings):
        assert picture.prompt == text.strip().split("--")[0].strip()
    else:
        assert picture.refusal.kind == "ValueError"
