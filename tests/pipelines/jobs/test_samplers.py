"""``sample.sampler``: AI Toolkit's own schedulers for Lumina2, recorded, and what is replayed of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from comfyui_aitk.pipelines.jobs.folder import open_job

GOLDEN = Path(__file__).parents[2] / "golden" / "jobs"
RECORDED = {one["sampler"]: one for one in json.loads((GOLDEN / "samplers.json").read_text("utf-8"))["cases"]}


@pytest.fixture
def problems(tmp_path):
    """``problems(section, train, job)``: of the samples of a copied job, whose sections are changed."""

    def of(section, train=None, job="lumina2_png"):
        folder = Path(shutil.copytree(GOLDEN / job, tmp_path / job, ignore=shutil.ignore_patterns("*.pt")))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        process = config["config"]["process"][0]
        process["train"] |= train or {}
        for key, values in section.items():
            process[key] = process["sample"] | process.get(key, {}) | values
        (folder / "config.yaml").write_text(json.dumps(config))  # without YAML's aliases
        opened = open_job(folder)
        return [one.problem for one in opened.samples], [one.problem for one in opened.first_samples]

    return of


@pytest.mark.parametrize("sampler", RECORDED)
def test_a_sampler_is_replayed_where_ai_toolkit_s_is_ours(problems, sampler):
    found, _ = problems({"sample": {"sampler": sampler}})
    if sampler == "flowmatch":
        assert found == [""] * 3
    elif RECORDED[sampler]["error"]:
        assert all("with which AI Toolkit stops at Lumina" in one for one in found)
    else:
        assert all(f"sample.sampler is {sampler!r}, whose loop this pack does not have" in one for one in found)


def test_without_a_sampler_the_default_or_the_training_s_is_taken(problems, tmp_path):
    assert "'ddpm'" in problems({"sample": {"sampler": "ddpm"}})[0][0]
    shutil.rmtree(tmp_path / "lumina2_png")
    assert problems({"sample": {"sampler": None}}, {"noise_scheduler": "flowmatch"})[0] == [""] * 3
    shutil.rmtree(tmp_path / "lumina2_png")
    assert (
        "train.noise_scheduler is 'ddpm'" in problems({"sample": {"sampler": None}}, {"noise_scheduler": "ddpm"})[0][0]
    )


def test_each_round_has_its_own(problems):
    found, first = problems({"first_sample": {"sampler": "lms"}}, {"skip_first_sample": True})
    assert found == [""] * 3
    assert all("'lms'" in one for one in first)


@pytest.mark.parametrize("job", ["flux2_control", "omnigen2_control"])
def test_other_models_pass_it_by(problems, job):
    assert set(problems({"sample": {"sampler": "ddpm"}}, job=job)[0]) == {""}
