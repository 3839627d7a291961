"""Which merges came before a picture in the trainer's weights: rounds, restarts, and LoRAs that are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.jobs.merges import merges_before, restorable
from comfyui_aitk.pipelines.jobs.previews import Picture
from comfyui_aitk.pipelines.jobs.rounds import find_rounds

GOLDEN = Path(__file__).parents[2] / "golden" / "jobs"
# what AI Toolkit prints
FRESH, TAKEN_UP = "Generating baseline samples before training\n", "Found step {} in metadata, starting from there\n"
FIRST = {"neg": "", "width": 64, "height": 64, "prompts": ["one", "two", "three"], "network_multiplier": -0.25}
SAVED_250, SAVED_500 = "fox_style_v1_000000250.safetensors", "fox_style_v1_000000500.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A recorded job of rounds 0, 250, 500 and 600."""
    return Path(shutil.copytree(GOLDEN / "lumina2_png", tmp_path / "fox", ignore=shutil.ignore_patterns("*.pt")))


def opened(folder, multiplier: float | None = -0.5, **sections):
    """The job at a multiplier (None: several), with its sections changed."""
    config = yaml.safe_load((GOLDEN / "lumina2_png" / "config.yaml").read_text())
    process = config["config"]["process"][0]
    process["sample"]["network_multiplier"] = -0.5 if multiplier is None else multiplier
    if multiplier is None:
        process["sample"]["samples"][0]["network_multiplier"] = 1.0
    for key, values in sections.items():
        process[key] = process.get(key, {}) | values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return open_job(folder)


def before(job, step: int, index: int = 0) -> list[tuple[int, float]]:
    return [(one.checkpoint.step, one.multiplier) for one in merges_before(job, step, index)]


def lost(job, step: int) -> list[int]:
    return [one.checkpoint.step for one in merges_before(job, step, 0) if one.checkpoint.file is None]


def log(folder, *processes: str) -> None:
    (folder / "logs").mkdir()
    for number, text in enumerate(processes[:-1]):
        (folder / "logs" / f"{number}_log.txt").write_text(text)
    (folder / "log.txt").write_text(processes[-1])


def draw(folder, step: int, after: int) -> None:
    """Pictures of a step once more, saved after those of another step, and before what came then."""
    for index in range(3):
        last = next((folder / "samples").glob(f"*__{after:09}_2.png"))
        time = int(last.name.split("_")[0]) + 1 + index
        shutil.copy(last, folder / "samples" / f"{time}__{step:09}_{index}.png")


def test_each_round_merges_and_the_first_one_s_lora_adds_nothing(folder):
    job = opened(folder)
    assert [before(job, step) for step in (0, 250, 500)] == [[], [], [(250, -0.5)]]
    assert before(job, 600) == [(250, -0.5), (500, -0.5)]
    assert restorable(job, merges_before(job, 600, 0))
    assert job.notes == ()


@pytest.mark.parametrize(
    "sections",
    [
        {"multiplier": None}, {"multiplier": 0}, {"model": {"quantize": True}},
        {"model": {"layer_offloading": True}}, {"network": {"type": "dora"}},
    ],
)  # fmt: skip
def test_live_loras_and_those_of_multiplier_0_leave_nothing(folder, sections):
    assert before(opened(folder, **sections), 600) == []


def test_what_rounded_saves_restore(folder):
    for multiplier, dtype, whole in ((-0.5, "fp16", True), (0.5, "fp32", True), (0.5, "fp16", False)):
        job = opened(folder, multiplier, save={"dtype": dtype})
        assert restorable(job, merges_before(job, 600, 0)) == whole


def test_pictures_after_a_lora_that_is_gone_are_named(folder):
    (folder / SAVED_500).unlink()
    job = opened(folder)
    assert restorable(job, merges_before(job, 500, 0))
    assert not restorable(job, merges_before(job, 600, 0))
    note = next(one for one in job.notes if "cannot be drawn again" in one)
    assert note.startswith("The pictures of step 600 cannot")
    assert "the LoRA of step 500 is not there" in note
    # only roundings are missing
    assert not any("cannot be drawn again" in one for one in opened(folder, 0.5).notes)


def test_a_restart_that_a_log_tells_begins_with_the_base_s_own_weights(folder):
    log(folder, FRESH, "out of memory", TAKEN_UP.format(250))
    (folder / SAVED_250).unlink()
    job = opened(folder)
    assert (before(job, 250), before(job, 500), before(job, 600)) == ([], [], [(500, -0.5)])
    assert not any("cannot be drawn again" in one for one in job.notes)


def test_each_log_tells_of_its_own_process(folder):
    log(folder, FRESH, TAKEN_UP.format(250), TAKEN_UP.format(500))
    job = opened(folder)
    assert (before(job, 500), before(job, 600)) == ([], [])


def test_a_first_start_is_no_restart(folder):
    log(folder, FRESH)
    assert before(opened(folder), 600) == [(250, -0.5), (500, -0.5)]
    # the log of the first one is gone
    (folder / "log.txt").write_text(TAKEN_UP.format(500))
    assert before(opened(folder), 600) == []


def test_a_step_that_was_rendered_again_tells_of_a_restart(folder):
    # 250 and 500, then once more from 250 on
    draw(folder, 500, after=250)
    job = opened(folder)
    assert (before(job, 500), before(job, 600)) == ([], [(500, -0.5)])


def test_a_lora_that_a_later_process_saved_again_is_none_of_the_earlier(folder):
    # 250, 500, 600, and once more from 250 on, which ended at 500
    draw(folder, 500, after=600)
    job = opened(folder)
    assert before(job, 500) == []
    assert before(job, 600) == [(250, -0.5), (500, -0.5)]
    assert lost(job, 600) == [500]


@pytest.mark.parametrize("logged", [True, False])
def test_a_process_that_first_renders_the_step_at_which_it_begins(folder, logged):
    draw(folder, 500, after=500)
    if logged:
        log(folder, FRESH, TAKEN_UP.format(500))
    job = opened(folder, train={"force_first_sample": True})
    assert (before(job, 500), before(job, 600)) == ([], [(500, -0.5)])


def test_rounds_at_the_beginning_merge_the_lora_that_the_training_began_with(folder):
    began = {"network": {"pretrained_lora_path": "/loras/first.safetensors"}}
    assert before(opened(folder, **began), 500) == [(0, -0.5), (250, -0.5)]
    draw(folder, 0, after=0)
    job = opened(folder, None, first_sample=FIRST, **began)
    # the usual round runs live, on what its own one left; of step 0 the usual one's pictures are the latest
    assert before(job, 0) == before(job, 500) == [(0, -0.25)]
    # it may lie among the user's
    assert not any("cannot be drawn again" in one for one in job.notes)


def test_a_process_that_begins_anew_renders_the_rounds_of_the_beginning_anew():
    steps = (0, 0, 0, 0, 250)
    pictures = [Picture(time, step, 0, Path("x.png")) for time, step in enumerate(steps)]
    merged_at = {"first_sample": -0.25, "sample": 0.5}
    found = find_rounds(pictures, merged_at, ("first_sample", "sample"), (), samples_on_resume=False)
    assert [(one.process, one.merged_at) for one in found] == [(0, -0.25), (0, 0.5), (1, -0.25), (1, 0.5), (1, 0.5)]


def test_a_checkpoint_without_pictures_comes_after_the_rounds_before_it(folder):
    for picture in (folder / "samples").glob("*__000000500_*"):
        picture.unlink()
    job = opened(folder)
    assert before(job, 500) == before(job, 600) == [(250, -0.5)]
