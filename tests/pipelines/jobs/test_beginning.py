"""The previews before a training: whose settings they have, and which state of the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.jobs.beginning import rounds_at_start
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.replay.selection import select

GOLDEN = Path(__file__).parents[2] / "golden" / "jobs"
RECORDED = json.loads((GOLDEN / "start_rounds.json").read_text("utf-8"))["cases"]
FIRST = {"neg": "", "seed": 3, "width": 64, "height": 64, "prompts": ["one", "two", "three", "four"]}


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_the_rounds_before_a_training_are_ai_toolkit_s(case):
    found = rounds_at_start(case["train"], case["own_first"], case["step"])
    assert [list(one) for one in found] == case["rounds"]


@pytest.fixture
def opened(tmp_path):
    """A recorded job with a fourth picture at step 0, and its config changed: ``opened(train={...})``."""
    folder = Path(shutil.copytree(GOLDEN / "lumina2_png", tmp_path / "fox", ignore=shutil.ignore_patterns("*.pt")))
    samples = folder / "samples"
    shutil.copy(next(samples.glob("*__000000000_0.png")), samples / "9795210355584__000000000_3.png")

    def changed(**sections):
        config = yaml.safe_load((GOLDEN / "lumina2_png" / "config.yaml").read_text())
        process = config["config"]["process"][0]
        for key, values in sections.items():
            process[key] = process.get(key, {}) | values
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return open_job(folder)

    return changed


def prompts(samples):
    return [one.prompt for one in samples]


def test_a_round_of_its_own_stays_where_the_usual_one_is_skipped(opened):
    job = opened(first_sample=FIRST, train={"skip_first_sample": True})
    assert prompts(job.samples_at(0)) == FIRST["prompts"]
    assert prompts(job.samples_at(250)) == prompts(job.samples) == prompts(open_job(GOLDEN / "lumina2_png").samples)
    assert job.notes == ()


def test_of_two_rounds_of_step_0_the_later_one_s_pictures_are_there(opened):
    job = opened(first_sample=FIRST)
    assert prompts(job.samples_at(0)) == [*prompts(job.samples), "four"]
    assert job.notes == ()
    chosen = select(job, "0,250", "1,3")
    assert [[one.index for one in chosen.at(checkpoint)] for checkpoint in chosen.checkpoints] == [[1, 3], [1]]
    assert list(chosen.columns) == [1, 3]
    assert chosen.columns[1] == job.samples[1]
    with pytest.raises(InputError, match="first_sample"):
        select(job, "250", "3")


def test_a_job_without_a_round_of_its_own_has_no_sample_for_a_fourth_picture(opened):
    assert "no sample for picture 3" in "\n".join(opened().notes)


def test_the_step_at_which_a_training_begins_is_the_base(opened):
    job = opened(train={"start_step": 100, "force_first_sample": True})
    shutil.copy(next((job.folder / "samples").glob("*_0.png")), job.folder / "samples" / "7__000000100_0.png")
    found = {one.step: one for one in open_job(job.folder).checkpoints}
    assert [step for step, one in found.items() if one.base] == [0, 100]
    assert "train.start_step" in "\n".join(job.notes)
    # a LoRA that was saved there counts
    shutil.copy(job.folder / "fox_style_v1_000000250.safetensors", job.folder / "fox_style_v1_000000100.safetensors")
    (saved,) = (one for one in open_job(job.folder).checkpoints if one.step == 100)
    assert (saved.base, saved.file and saved.file.path.name) == (False, "fox_style_v1_000000100.safetensors")


def test_a_training_that_begins_with_a_lora_has_it_at_step_0(opened):
    job = opened(network={"pretrained_lora_path": "/home/me/loras/old.safetensors"})
    first = job.checkpoints[0]
    assert (first.step, first.base, first.initial, first.file) == (0, False, "/home/me/loras/old.safetensors", None)
    assert "pretrained_lora_path" in "\n".join(job.notes)
