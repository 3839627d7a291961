"""A recorded job's folder through the nodes, and what a workflow may not name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_aitk.nodes.compare import AITKComparePreviews
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.training_job import AITKReplayPreviews, AITKTrainingJob
from comfyui_aitk.pipelines.errors import FileError, InputError
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.jobs.job import JobCheckpoint, TrainingJob
from recorded_jobs import recorded_base, recorded_job

GOLDEN = Path(__file__).parent.parent / "golden"
LORA = "fox_style_v1_000000250.safetensors"

pytestmark = pytest.mark.usefixtures("kept_engine")


@pytest.fixture
def jobs(host, tmp_path: Path) -> Path:
    """ComfyUI's input folder with the recorded jobs ``png`` and ``flux2``; the host has the first one's base."""
    shutil.copytree(GOLDEN / "jobs" / "lumina2_png", host.input / "png")
    shutil.copytree(GOLDEN / "jobs" / "flux2_control", host.input / "flux2")
    use_host(PlainHost(tmp_path, host.input, host.output, "cpu", {"diffusers": GOLDEN / "lumina2" / "base"}))
    return host.input


def _replayed(name: str, **chosen: str) -> tuple:
    job, pipeline, _ = AITKTrainingJob().open(name, "base")
    return AITKReplayPreviews().replay(job, pipeline, **chosen)["result"]


def test_a_job_is_replayed_as_it_was_rendered(jobs):
    ours, trainer, sheet, text = _replayed("png", checkpoints="0,250")
    assert ours.shape == trainer.shape == (6, 64, 96, 3)
    # 1 level on 1 %: other kernels, see CONTRIBUTING.md
    assert (ours - trainer).abs().max() * 255 < 1.5
    assert sheet.shape[0] == 1
    report = json.loads(text)
    assert [(cell["step"], cell["index"]) for cell in report["cells"]] == [(s, i) for s in (0, 250) for i in (0, 1, 2)]
    assert {cell["verdict"] for cell in report["cells"]} <= {"identical", "kernel noise", "same picture"}
    assert report["trained_with"] == "0.12.26"


def test_a_comfyui_without_jobs_says_where_they_go(host):
    (choice,) = AITKTrainingJob.INPUT_TYPES()["required"]["job"][0]
    assert choice == "no training job yet"
    assert "in ComfyUI's input folder" in AITKTrainingJob.VALIDATE_INPUTS(choice)
    with pytest.raises(FileError, match="No job is chosen"):
        AITKTrainingJob().open(choice)


def test_a_replay_s_report_tells_a_comparison_the_causes(jobs, capfd):
    """A text encoder that is not quantised as the trainer's; the LoRA of step 250 is gone, and one picture."""
    shutil.copytree(GOLDEN / "jobs" / "lumina2_te_qfloat8", jobs / "te")
    next((jobs / "te" / "samples").glob("*__000000600_1.*")).unlink()
    job, pipeline, _ = AITKTrainingJob().open("te", "base")
    pipeline = replace(pipeline, options=replace(pipeline.options, text_encoder_quantization="none"))
    ours, trainer, _, told = AITKReplayPreviews().replay(job, pipeline, "0,250,600", measure_floor=False)["result"]
    _, _, text = AITKComparePreviews().compare(ours, trainer, replay_report=told, unique_id="7")["result"]
    report = json.loads(text)
    found = [[cause["name"] for cause in one["causes"]] for one in report["pictures"]]
    assert [names[0] for names in found[:3]] == ["text_encoder_quantization"] * 3
    assert report["notes"] == ["step 600, sample 1: the job has no picture of it"]
    shown = capfd.readouterr().err
    assert "step 600, sample 0: The text encoder's quantisation is none, the trainer's qfloat8." in shown
    assert "Unknown: device, attention, versions." in shown
    # the same picture has no cause
    _, _, text = AITKComparePreviews().compare(ours, ours, replay_report=told)["result"]
    assert [one["causes"] for one in json.loads(text)["pictures"]] == [[]] * 4
    with pytest.raises(InputError, match="replay_report is of 4 pictures, and ours holds 3"):
        AITKComparePreviews().compare(ours[:3], trainer[:3], replay_report=told)
    for text in ("", "[]", '{"cells": [3]}', '{"cells": [{"error": null}]}', "[" * 100_000):
        with pytest.raises(InputError, match=r"replay_report is no report of a replay\. Connect"):
            AITKComparePreviews().compare(ours, trainer, replay_report=text)


def test_what_is_missing_is_said_beside_what_is_there(jobs):
    (jobs / "png" / LORA).unlink()
    for picture in (jobs / "png" / "samples").glob("*__000000500_0.png"):
        picture.unlink()
    ours, trainer, _, text = _replayed("png", checkpoints="250,500", samples="0,1", strengths="1,0.5")
    cells = json.loads(text)["cells"]
    assert [cell["verdict"] for cell in cells[:4]] == ["not rendered"] * 4
    assert "is gone" in cells[0]["error"]
    # the first has no picture any more, and the trainer rendered none at half the strength
    assert [cell["verdict"] for cell in cells[4:] if cell["strength"] == 0.5] == ["no preview"] * 2
    assert len(ours) == len(trainer) == 4
    with pytest.raises(InputError, match=r"No picture of job .* could be rendered. .*is gone"):
        _replayed("png", checkpoints="250")


def test_the_pipeline_is_the_jobs(jobs):
    shutil.copytree(GOLDEN / "jobs" / "lumina2_te_qfloat8", jobs / "te")
    _, pipeline, summary = AITKTrainingJob().open("te", "base")
    assert pipeline.dtype == "float32"
    assert pipeline.options.text_encoder_quantization == "qfloat8"
    assert pipeline.options.transformer_quantization == "none"
    assert "checkpoints: 0, 250 (gone)" in summary
    with pytest.raises(InputError, match=r"on the trainer's machine, .* Set weights"):
        AITKTrainingJob().open("te", "default")


def test_a_training_that_began_with_a_lora_is_replayed_with_it_at_step_0(jobs, tmp_path):
    """AI Toolkit's pictures of step 250 stand for those of a job that began with that LoRA."""
    config = jobs / "png" / "config.yaml"
    named = "network:\n      pretrained_lora_path: /home/me/loras/old.safetensors"
    config.write_text(config.read_text().replace("network:", named, 1))
    with pytest.raises(InputError, match=r"network\.pretrained_lora_path\), which is not in 'loras'"):
        _replayed("png", checkpoints="0")
    (tmp_path / "loras").mkdir()
    shutil.copy(jobs / "png" / LORA, tmp_path / "loras" / "old.safetensors")
    own = {"diffusers": GOLDEN / "lumina2" / "base", "loras": tmp_path / "loras"}
    use_host(PlainHost(tmp_path, jobs, jobs.parent / "output", "cpu", own))
    ours, _, _, text = _replayed("png", checkpoints="0,250", measure_floor=False)
    assert [cell["strength"] for cell in json.loads(text)["cells"]] == [1.0] * 6
    assert torch.equal(ours[:3], ours[3:])


def test_an_unknown_model_is_named(jobs):
    config = jobs / "png" / "config.yaml"
    config.write_text(config.read_text().replace("arch: lumina2", "arch: wan21"))
    with pytest.raises(InputError, match="There is no model 'wan21'"):
        AITKTrainingJob().open("png", "base")


def test_jobs_are_found_below_the_folders_that_the_user_configured(jobs, tmp_path, monkeypatch):
    configured, elsewhere = tmp_path / "configured", tmp_path / "elsewhere"
    for folder in (configured, elsewhere):
        shutil.copytree(GOLDEN / "jobs" / "lumina2_jpg", folder / "coast")
    monkeypatch.setenv("AITK_JOBS_PATH", str(configured))
    assert AITKTrainingJob.INPUT_TYPES()["required"]["job"][0] == ["coast", "flux2", "png"]
    assert AITKTrainingJob.VALIDATE_INPUTS("coast") is True
    for name in ("../elsewhere/coast", str(elsewhere / "coast")):
        assert "is refused" in AITKTrainingJob.VALIDATE_INPUTS(name)
        with pytest.raises(FileError, match="is refused"):
            AITKTrainingJob().open(name)


def test_a_job_that_goes_on_is_noticed(jobs):
    before = AITKTrainingJob.IS_CHANGED("png")
    assert AITKTrainingJob.IS_CHANGED("png") == before
    samples = jobs / "png" / "samples"
    shutil.copy(next(samples.glob("*_0.png")), samples / "1795219999999__000000700_0.png")
    assert AITKTrainingJob.IS_CHANGED("png") != before


def test_something_else_than_a_job_is_refused(jobs):
    _, pipeline, _ = AITKTrainingJob().open("png", "base")
    with pytest.raises(InputError, match="Connect AITK Training Job"):
        AITKReplayPreviews().replay("png", pipeline)  # pyright: ignore[reportArgumentType]


def _large(steps: int, samples: int, side: int = 64) -> tuple[TrainingJob, PipelineHandle]:
    """The recorded job with many samples, and with many checkpoints of which the base alone is there."""
    job = recorded_job("lumina2_png")
    many = tuple(replace(job.samples[0], index=i, seed=i % 3, width=side, height=side) for i in range(samples))
    gone = tuple(JobCheckpoint(step, False, missing=f"gone_{step}.safetensors") for step in range(1, steps))
    checkpoints = (job.checkpoints[0], *gone)
    return replace(job, samples=many, first_samples=many, checkpoints=checkpoints), recorded_base("lumina2")


def test_a_job_of_two_thousand_pictures_says_what_it_skipped(jobs, monkeypatch):
    said = []
    monkeypatch.setattr(PlainHost, "show_text", lambda self, node, text: said.append(text))
    ours, trainer, _, text = AITKReplayPreviews().replay(*_large(200, 10), checkpoints="all")["result"]
    cells = json.loads(text)["cells"]
    assert len(cells) == 2000
    assert sum("is gone" in (cell["error"] or "") for cell in cells) == 1990
    assert len(ours) == len(trainer) == 10
    assert len({picture.numpy().tobytes() for picture in ours}) == 3
    assert "1990 not rendered" in said[-1]
    assert "10 pictures: The LoRA 'gone_1.safetensors' is gone" in said[-1]
    assert "196 more reasons are in the report" in said[-1]


@pytest.mark.parametrize(
    ("steps", "samples", "side", "why"), [(201, 10, 64, "1 to 2,000"), (1, 2000, 16384, "IMAGE, and this computer has")]
)
def test_too_much_at_once_is_refused_before_anything_is_rendered(jobs, steps, samples, side, why):
    with pytest.raises(InputError, match=why):
        AITKReplayPreviews().replay(*_large(steps, samples, side), checkpoints="all")
    assert not list(jobs.parent.rglob("aitk_replay/*"))
