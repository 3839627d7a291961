"""Which recipe the version of AI Toolkit makes it: of one version, and of a training that went on after an update."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.compare.causes import Described
from comfyui_aitk.pipelines.compare.undecided import undecided
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.jobs.era import comfy_weights_of, encoder_types_of, recipes_of
from comfyui_aitk.pipelines.jobs.folder import open_job
from comfyui_aitk.pipelines.jobs.job import JobCheckpoint, JobPreview
from comfyui_aitk.pipelines.jobs.model_section import read_model
from comfyui_aitk.pipelines.models import find_model
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "jobs" / "lumina2_png"
JOB = open_job(GOLDEN)
# a version of the job -> the days at which Z-Image's recipes of it begin; an era begins at a version that lasts longer
ERAS = {
    "0.12.26": ["trainer preview"],
    "0.13.19": ["trainer preview"],
    "0.10.25": ["trainer preview"],
    "0.10.24": ["trainer preview", "trainer preview until 2026-07-14", "trainer preview until 2026-07-12"],
    "0.10.22": ["trainer preview until 2026-07-12"],
    "0.10.21": ["trainer preview until 2026-07-12", "trainer preview until 2026-07-07"],
    "0.9.13": ["trainer preview until 2026-05-27"],
    "0.7.18": ["trainer preview until 2026-03-21"],
    "0.3.1": ["trainer preview until 2026-03-21"],
}
# AI Toolkit's own lines, as run.py, BaseSDTrainProcess.py and libraries below its folder print them
LOG = """Running 1 job
/home/me/ai-toolkit/venv/lib/python3.12/site-packages/torch/cuda/__init__.py:61: FutureWarning: pynvml 12.0.0
/home/me/ai-toolkit/toolkit/x.py:5: FutureWarning: `clean_caption` is deprecated and will be removed in version 0.46.0.
Using SQLite database at /home/me/ai-toolkit/aitk_db.db
Job ID: "5d0f2f4e-7a52-4a0f-9c5e-0c2b5f9f1e11"

#############################################
# Running job: fox_style_v1
#############################################

#### IMPORTANT RESUMING FROM /home/me/ai-toolkit/output/fox_style_v1/fox_style_v1_000000250.safetensors ####
Found step 250 in metadata, starting from there
"""


def saved_by(versions, previews=(), **change):
    """The recipes of Z-Image for the steps of a job: step -> the version that saved it; empty where it is gone."""
    checkpoints = tuple(JobCheckpoint(step, False, trained_with=version) for step, version in versions.items())
    times = tuple(
        JobPreview(step, i, FileStamp(Path(f"{t}__x_{i}.png"), 1, 1, 1)) for i, (step, t) in enumerate(previews)
    )
    job = replace(JOB, checkpoints=checkpoints, previews=times, **change)
    return {one.step: list(recipes_of(job, one, find_model("zimage:turbo"))) for one in checkpoints}


@pytest.mark.parametrize("version", ERAS)
def test_the_recipes_of_a_version(version):
    assert saved_by({500: version}) == {500: ERAS[version]}
    # a time later than all of them rules out nothing
    assert saved_by({500: version}, [(500, 1795210355584)]) == {500: ERAS[version]}


def test_the_pictures_time_rules_out_what_came_later():
    july_13, july_1 = 1783900800000, 1782864000000
    assert saved_by({1: "0.10.24"}, [(1, 1795210355584), (1, july_13)]) == {1: ERAS["0.10.24"][1:]}
    assert saved_by({0: "", 1: ""}, [(1, july_1)])[0][0] == "trainer preview until 2026-07-07"
    assert len(saved_by({1: ""})[1]) == 6
    # that of another step does not: this one was rendered after an update
    assert saved_by({1: "0.10.24", 2: "0.10.24"}, [(1, july_13), (2, 1795210355584)])[2] == ERAS["0.10.24"]
    # a clock that was wrong rules out everything, and so nothing
    assert saved_by({1: "0.12.26"}, [(1, 1)]) == {1: ERAS["0.12.26"]}
    assert saved_by({1: "0.12.26"}, [(1, 10**17)]) == {1: ["trainer preview"]}


def test_each_checkpoint_of_a_training_that_went_on_after_an_update_has_its_own():
    found = saved_by({0: "", 250: "0.9.13", 500: "", 750: "0.10.22", 1000: "0.12.26", 1100: ""})
    assert found[0] == found[250] == ERAS["0.9.13"]
    # between the two, and so perhaps the one that lies between them
    assert found[500] == [
        "trainer preview until 2026-07-12",
        "trainer preview until 2026-07-07",
        "trainer preview until 2026-05-27",
    ]
    assert found[750] == ERAS["0.10.22"]
    assert found[1000] == found[1100] == ERAS["0.12.26"]
    # back to an older checkout
    assert saved_by({1: "0.12.26", 2: "", 3: "0.10.25"})[2] == ["trainer preview"]


def test_a_training_that_samples_where_it_is_taken_up_may_have_done_so_after_the_update():
    versions = {250: "0.9.13", 500: "0.9.13", 750: "0.9.14"}
    assert saved_by(versions)[500] == ERAS["0.9.13"]
    found = saved_by(versions, samples_on_resume=True)
    assert found[500] == ["trainer preview until 2026-07-07", "trainer preview until 2026-05-27"]
    assert found[250] == ERAS["0.9.13"]


def test_a_model_that_the_trainer_always_rendered_alike_has_one_recipe():
    assert recipes_of(JOB, JOB.checkpoints[1], find_model("lumina2")) == ("trainer preview",)


def test_the_encoder_of_flux2_is_that_of_each_checkpoint_s_version():
    versions = {250: "0.12.26", 500: "", 750: "0.13.19"}
    checkpoints = tuple(JobCheckpoint(step, False, trained_with=version) for step, version in versions.items())
    section = {"arch": "flux2", "name_or_path": "a/b", "quantize": True, "qtype": "uint4", "qtype_te": "qint8"}

    def types(**change):
        model, _ = read_model({"model": section | change, "train": {"dtype": "bf16"}}, "0.13.19")
        job = replace(JOB, model=model, checkpoints=checkpoints)
        return [encoder_types_of(job, one) for one in checkpoints]

    assert types() == [("uint4",), ("qint8", "uint4"), ("qint8",)]
    assert types(qtype_te="uint4") == [("uint4",)] * 3
    assert types(arch="omnigen2") == [("qint8",)] * 3
    assert types(quantize_te=False) == [("none",)] * 3


@pytest.mark.parametrize(
    ("version", "section", "named"),
    [
        ("0.12.26", {}, False), ("0.13.19", {}, True), ("", {}, True), ("0.13.0", {}, True),
        ("0.13.19", {"model_kwargs": {"use_comfy_weights": False}}, False),
        ("0.13.19", {"name_or_path": "me/other"}, False), ("0.13.19", {"arch": "lumina2"}, False),
    ],
)  # fmt: skip
def test_comfyui_s_files_may_have_been_the_base(version, section, named):
    section = {"arch": "zimage:turbo", "name_or_path": "Tongyi-MAI/Z-Image-Turbo"} | section
    model, _ = read_model({"model": section, "train": {"dtype": "bf16"}}, version)
    checkpoint = JobCheckpoint(250, False, trained_with=version)
    job = replace(JOB, model=model, checkpoints=(checkpoint,))
    names = ("z_image_turbo_int8_convrot", "z_image_turbo_bf16")
    assert comfy_weights_of(job, checkpoint) == (names if named else ())
    words = " ".join(one.words for one in undecided(job, checkpoint, Described(weights="here")))
    assert all((name in words) == named for name in (*names, "here"))


@pytest.fixture
def resumed(tmp_path):
    """A copy of a recorded job whose first LoRA was saved by an earlier version."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "fox", ignore=shutil.ignore_patterns("*.pt")))
    stamp(folder / "fox_style_v1_000000250.safetensors", {"software": '{"name": "ai-toolkit", "version": "0.10.22"}'})
    return folder


def stamp(path, metadata):
    save_file(load_file(path), path, metadata)


def test_the_versions_are_those_of_the_saved_loras(resumed):
    config = resumed / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 1", "force_first_sample: true"))
    job = open_job(resumed)
    assert [one.trained_with for one in job.checkpoints] == ["", "0.10.22", "0.12.26", "0.12.26"]
    assert (job.trained_with, job.samples_on_resume) == ("0.12.26", True)
    assert "0.10.22, 0.12.26" in "\n".join(job.notes)


def test_a_log_tells_no_version(resumed):
    """AI Toolkit prints its version nowhere; those in its log are of libraries in its folder."""
    for path in resumed.glob("*.safetensors"):
        stamp(path, {"training_info": json.dumps({"step": 600})})
    (resumed / "log.txt").write_text(LOG)
    job = open_job(resumed)
    assert job.trained_with == ""
    assert {one.trained_with for one in job.checkpoints} == {""}
    # the pictures are of the time after the last change
    assert len(recipes_of(job, job.checkpoints[1], find_model("zimage"))) == 6
