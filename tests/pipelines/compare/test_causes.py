"""The check-list of recorded training jobs against reports of this pack's own sampler."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.compare.causes import Standing, causes
from comfyui_aitk.pipelines.compare.described import Described, our_run, recorded_run
from comfyui_aitk.pipelines.jobs.folder import open_job

JOBS = Path(__file__).resolve().parents[2] / "golden" / "jobs"
SIZE = (64, 64)
TRAINER = ("trainer preview",)


@pytest.fixture
def report(host) -> dict:
    """The sampler's report of the first sample of the job with a quantised text encoder, rendered without."""
    sample = open_job(JOBS / "lumina2_te_qfloat8").samples[0]
    inputs = {
        "pipeline": ["load", 0], "prompt": sample.prompt, "negative_prompt": "", "width": 64, "height": 64,
        "steps": sample.steps, "guidance_scale": sample.guidance_scale, "seed": sample.seed,
        "recipe": "trainer preview", "trigger_word": "", "system_prompt": "", "batch_size": 1,
    }  # fmt: skip
    graph = {
        "load": {"class_type": "LoadAITKModel", "inputs": {"model": "lumina2", "weights": "tiny", "dtype": "float32"}},
        "sample": {"class_type": "AITKSampler", "inputs": inputs},
        "save": {"class_type": "AITKSaveImage", "inputs": {"images": ["sample", 0], "report": ["sample", 6]}},
    }
    return json.loads(run_prompt(graph, NODE_CLASS_MAPPINGS).results["sample"][6])


def recorded(name: str, place: int, recipes: tuple[str, ...] = TRAINER, index: int = 0) -> Described:
    job = open_job(JOBS / name)
    return recorded_run(job, job.samples[index], job.checkpoints[place], SIZE, recipes)


def names(found, standing: Standing) -> list[str]:
    return [one.name for one in found if one.standing is standing]


def test_a_quantised_text_encoder_is_the_first_cause(report):
    found = causes(recorded("lumina2_te_qfloat8", 0), our_run(report, SIZE))
    assert names(found, Standing.DIFFERS) == ["text_encoder_quantization"]
    assert found[0].as_json() == {
        "name": "text_encoder_quantization",
        "standing": "differs",
        "recorded": "qfloat8",
        "ours": "none",
        "words": "The text encoder's quantisation is none, the trainer's qfloat8. Choose the job's in AITK Runtime "
        "Options.",
    }
    # the job says tiny-lumina2, the report tiny
    assert names(found, Standing.POSSIBLE) == ["base"]
    # of the trainer's machine a folder says nothing
    assert names(found, Standing.UNKNOWN) == ["device", "attention", "versions"]
    assert [one.standing for one in found] == sorted(one.standing for one in found)


def test_everything_equal_leaves_no_cause():
    theirs = recorded("lumina2_png", 1)
    alike = replace(theirs, fingerprint="0123", device="cpu", attention="default", versions={"torch": "2.13.0"})
    assert causes(alike, alike) == (), "nothing is listed that is known to be equal"


# what is changed in ours, and the cause that names it
CHANGES = {
    "model": {"model": "other"},
    "prompt": {"prompt": "a dog"},
    "negative_prompt": {"negative_prompt": "a dog"},
    "seed": {"seed": 3},
    "steps": {"steps": 99},
    "guidance_scale": {"guidance_scale": 1.5},
    "snapping": {"size": (96, 64)},
    "control_images": {"control_images": 2},
    "base": {"fingerprint": "9999"},
    "era": {"recipes": ("sd-scripts",)},
    "quantization": {"denoiser_quantization": "qfloat8"},
    "text_encoder_quantization": {"encoder_quantization": "qfloat8"},
    "dtype": {"dtype": "bfloat16"},
    "step_caching": {"step_caching": True},
    "lora": {"loras": {}},
    "lora_strength": {"loras": {"fox_style_v1_000000250.safetensors": 0.5}},
    "lora_application": {"lora_application": "live"},
    "lora_precision": {"lora_dtype": "float16"},
    "device": {"device": "cuda:0"},
    "attention": {"attention": "flash"},
    "version_of_torch": {"versions": {"torch": "2.0"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_change_is_one_cause(name):
    theirs = replace(
        recorded("lumina2_png", 1), fingerprint="0123", device="cpu", attention="default", versions={"torch": "2.13.0"}
    )
    (found,) = causes(theirs, replace(theirs, **CHANGES[name]))
    assert (found.name, found.standing) == (name, Standing.DIFFERS)
    assert found.words.endswith(".")
    assert found.recorded != found.ours


def test_likelier_causes_come_first():
    theirs = recorded("lumina2_png", 1)
    ours = replace(theirs, seed=3, dtype="bfloat16", loras={}, device="cpu", encoder_quantization="qfloat8")
    found = causes(theirs, ours)
    assert names(found, Standing.DIFFERS) == ["seed", "text_encoder_quantization", "dtype", "lora"]


def test_a_merging_job_s_later_rounds_may_have_drifted():
    for place, count in ((0, 0), (1, 0), (2, 1), (3, 2)):
        theirs = recorded("lumina2_png", place)
        assert theirs.merges_before == (1.0,) * count
        for ours, name in (((), "merge_drift"), (theirs.merges_before, "earlier_rounds")):
            found = causes(theirs, replace(theirs, merges_before=ours), base_is_equal=True)
            assert [(one.name, one.standing) for one in found] == [(name, Standing.POSSIBLE)] * (count > 0)
    # live LoRAs leave nothing behind
    assert recorded("flux2_control", 3).merges_before == ()


def test_a_dora_is_live_however_its_job_samples():
    job = replace(open_job(JOBS / "lumina2_png"), network_type="dora")
    assert recorded_run(job, job.samples[0], job.checkpoints[1], SIZE).lora_application == "live"
    assert recorded("lumina2_png", 1).lora_application == "merged"


def test_a_negative_merge_that_ours_lacks_is_no_mere_drift():
    theirs = replace(recorded("lumina2_png", 2), merges_before=(0.5, -0.5))
    (found,) = causes(theirs, replace(theirs, merges_before=()), base_is_equal=True)
    assert (found.name, found.standing, found.recorded) == ("spoiled_base", Standing.DIFFERS, "0.5, -0.5")
    assert "cannot be drawn again" in found.words


def test_a_lora_saved_in_16_bits_is_named_and_an_equal_base_rules_the_rest_out():
    theirs = recorded("lumina2_jpg", 2)
    assert theirs.loras == {"coast_v2.safetensors": 0.8}
    ours = replace(theirs, lora_dtype="float16", merges_before=(), weights="another", dtype="bfloat16")
    found = causes(theirs, ours, base_is_equal=True)
    assert [one.name for one in found] == ["lora_precision", "merge_drift"]
    assert "float16" in found[0].words
    assert names(causes(theirs, replace(ours, lora_dtype=None), base_is_equal=True), Standing.UNKNOWN) == [
        "lora_precision"
    ]


def test_what_is_not_said_is_unknown():
    job = open_job(JOBS / "omnigen2_control")
    sample = replace(job.samples[0], seed=None)
    theirs = recorded_run(job, sample, job.checkpoints[1], SIZE)
    found = causes(theirs, replace(theirs, seed=5, fingerprint=None))
    assert names(found, Standing.UNKNOWN) == ["seed", "control_images", "base", "era"]
    assert "no file keeps" in found[0].words
    nothing = our_run({}, None)
    assert not names(causes(theirs, nothing), Standing.DIFFERS)
    # a step that was never saved
    never = recorded_run(job, sample, replace(job.checkpoints[1], file=None), SIZE)
    assert "lora" in names(causes(never, theirs), Standing.UNKNOWN)


def test_several_times_of_the_trainer_are_all_named():
    theirs = recorded("lumina2_png", 0, ("trainer preview", "trainer preview until 2026-07-14"))
    (found,) = [one for one in causes(theirs, replace(theirs, recipes=TRAINER)) if one.name == "era"]
    assert found.standing is Standing.POSSIBLE
    assert "trainer preview, trainer preview until 2026-07-14" in found.words


def test_what_cannot_matter_is_not_named():
    job = open_job(JOBS / "lumina2_png")
    extras = {"assistant_lora_path": r"C:\adapters\adapter_v1.safetensors", "layer_offloading": "True"}
    # the one model that AI Toolkit trains with an adapter
    job = replace(
        job, model=replace(job.model, arch="zimage:turbo", extras=extras, name_or_path="Owner/Model"), rounds=()
    )
    sample = replace(job.samples[0], multiplier=0.0, seed=-2)
    theirs = recorded_run(job, sample, job.checkpoints[3], SIZE, TRAINER)
    # of AI Toolkit's offloading only that it keeps LoRAs live; a LoRA of strength 0 has no precision
    ours = replace(
        theirs,
        weights="Owner/Model@0123456789ab",
        fingerprint="0123",
        loras={**theirs.loras, "adapter_v1.safetensors": 1.0},
        seed=2**64 - 2,
        lora_dtype="float16",
        lora_application="merged",
        merges_before=(),
    )
    found = causes(theirs, ours)
    assert [(cause.name, cause.standing) for cause in found] == [("base", Standing.UNKNOWN)]
    assert "without a revision, and ours is Owner/Model@0123456789ab" in found[0].words
    # the adapter, where it is missing
    assert names(causes(theirs, replace(ours, loras={"fox_style_v1.safetensors": 0.0})), Standing.DIFFERS) == ["lora"]


def test_measured_kernels_come_before_what_is_only_possible():
    theirs = recorded("lumina2_png", 2)
    ours = replace(theirs, weights="another", dtype="bfloat16", merges_before=())
    found = causes(theirs, ours, kernels="without oneDNN")
    assert [cause.name for cause in found][:4] == ["dtype", "kernels", "base", "merge_drift"]
    assert "with others (without oneDNN) our own picture changes as much" in found[1].words
