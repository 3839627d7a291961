"""Training jobs' folders: AI Toolkit's own, and what becomes of one when its files are changed, gone or hostile."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.jobs.folder import open_job

GOLDEN = Path(__file__).parents[2] / "golden" / "jobs"
# a model's trainer recipe takes one control image (`ctrl_img`) or several
ONE_IMAGE = {"omnigen2"}
RECORDED = sorted(path.stem for path in GOLDEN.glob("*.json") if (GOLDEN / path.stem).is_dir())
DTYPES = {"fp32": "float32", "float16": "float16", "fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture
def job_folder(tmp_path):
    """A copy of a job that renders without problems, to be changed."""
    return Path(shutil.copytree(GOLDEN / "lumina2_png", tmp_path / "fox", ignore=shutil.ignore_patterns("*.pt")))


def change(folder, edit, name="config.yaml"):
    """Rewrites the config of a folder; ``edit`` gets its first process."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config["config"]["process"][0])
    text = yaml.safe_dump(config) if name.endswith("yaml") else json.dumps(config)
    (folder / name).write_text(text)
    if name != "config.yaml":
        (folder / "config.yaml").unlink()


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_job_is_what_it_was_rendered_with(name):
    told = json.loads((GOLDEN / f"{name}.json").read_text())
    job = open_job(GOLDEN / name)
    assert job.model.arch == told["model"]
    assert job.model.name_or_path == told["name_or_path"]
    assert job.model.dtype == DTYPES[told["train_dtype"]]
    assert job.save_dtype == DTYPES[told["save_dtype"]]
    assert job.trained_with == ("" if told["error"] else "0.12.26")
    assert [one.step for one in job.checkpoints] == [one["step"] for one in told["rounds"]]
    items = [item for one in told["rounds"] for item in one["items"]]
    assert [preview.file.path.name for preview in job.previews] == [item["file"] for item in items]
    for checkpoint, one in zip(job.checkpoints, told["rounds"], strict=True):
        assert checkpoint.final == one["final"]
        held = checkpoint.file.path.name if checkpoint.file else None
        assert held == (one["lora"] if one["lora_present"] else None)
        assert checkpoint.missing == ("" if one["lora_present"] or one["lora"] is None else one["lora"])
        for item in one["items"]:
            sample = job.samples[item["index"]]
            preview = job.preview(one["step"], item["index"])
            assert preview is not None
            assert preview.file.path.name == item["file"]
            assert (sample.prompt, sample.negative_prompt) == (item["prompt"], item["negative_prompt"])
            assert (sample.width, sample.height, sample.steps) == (item["width"], item["height"], item["steps"])
            assert (sample.guidance_scale, sample.seed) == (item["guidance"], item["seed"])
            assert sample.multiplier == item["multiplier"]
            keys = ["ctrl_img"] if told["model"] in ONE_IMAGE else ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
            assert list(sample.control_images) == [item[key] for key in keys if item[key]]
            # none is quantised that would forbid it
            assert item["application"] == ("merged" if job.one_multiplier else "live")
            assert sample.problem == ""
    assert job.preview(one["step"], 99) is None


def test_a_job_that_died_has_its_picture_and_says_why_there_are_no_more():
    job = open_job(GOLDEN / "lumina2_neg_missing")
    assert len(job.previews) == 1
    assert "neg" in job.samples[1].problem
    assert "step 0 picture 1 is missing" in "\n".join(job.notes)


def test_a_save_that_is_gone_is_named():
    job = open_job(GOLDEN / "lumina2_te_qfloat8")
    assert job.checkpoints[1].missing == "fox_quant_000000250.safetensors"
    assert any("fox_quant_000000250.safetensors" in note for note in job.notes)
    assert job.model.quantization == {"denoiser": "none", "encoder": "qfloat8"}


def test_nothing_is_skipped_in_a_whole_folder():
    for name in ("lumina2_png", "lumina2_jpg", "flux2_control", "omnigen2_control", "lumina2_bf16"):
        assert open_job(GOLDEN / name).notes == ()


def test_the_web_interface_s_config_is_read_where_the_trainer_left_none(job_folder):
    whole = open_job(job_folder)
    change(
        job_folder, lambda process: process["sample"]["samples"][2].update(prompt="[name], ${HOME}"), ".job_config.json"
    )
    job = open_job(job_folder)
    assert job.samples[2].prompt == "fox_style_v1, ${HOME}"
    assert "environment variables" in job.notes[0]
    assert (job.samples[:2], job.checkpoints, job.previews) == (whole.samples[:2], whole.checkpoints, whole.previews)


def test_an_ordered_dict_of_pyyaml_s_own_is_read(job_folder):
    whole = open_job(job_folder)
    config = yaml.safe_load((job_folder / "config.yaml").read_text())
    pairs = "".join(f"- - {key}\n    - {json.dumps(value)}\n  " for key, value in config.items())
    (job_folder / "config.yaml").write_text(f"!!python/object/apply:collections.OrderedDict\n- {pairs}")
    assert open_job(job_folder).samples == whole.samples


def test_the_newest_of_two_rounds_of_a_step_wins(job_folder):
    old = next((job_folder / "samples").glob("*__000000250_1.png"))
    for name in ("1__000000250_1.png", "9999999999999__000000250_1.png"):
        shutil.copy(old, job_folder / "samples" / name)
    job = open_job(job_folder)
    preview = job.preview(250, 1)
    assert preview is not None
    assert preview.file.path.name == "9999999999999__000000250_1.png"
    assert len(job.previews) == 12


def test_what_is_no_preview_is_skipped_and_named(job_folder):
    samples = job_folder / "samples"
    for name in ("notes.txt", "1724085406830_000000500_0.png", "17__000000500_0.gif", "17__000000700_0.png"):
        (samples / name).write_bytes(b"" if "700" in name else b"x")
    for hidden in (".thumbs", ".tmp"):
        (samples / hidden).mkdir()
        (samples / hidden / "17__000000900_0.png").write_bytes(b"x")
    next(samples.glob("*__000000500_2.png")).unlink()
    job = open_job(job_folder)
    assert len(job.previews) == 11
    text = "\n".join(job.notes)
    for word in ("notes.txt", "1724085406830_000000500_0.png", "000000500_0.gif", "000000700_0.png"):
        assert word in text
    assert "Of step 500 picture 2 is missing." in job.notes


def test_a_lora_that_is_cut_off_is_skipped_with_the_reason(job_folder):
    path = job_folder / "fox_style_v1_000000500.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    job = open_job(job_folder)
    (checkpoint,) = [one for one in job.checkpoints if one.step == 500]
    assert (checkpoint.file, checkpoint.missing) == (None, path.name)
    (note,) = [note for note in job.notes if path.name in note]
    assert "500" in note


def test_a_step_without_a_save_is_told_from_one_whose_save_is_gone(job_folder):
    shutil.copy(next((job_folder / "samples").glob("*_000000500_0.png")), job_folder / "samples" / "7__000000100_0.png")
    (job_folder / "fox_style_v1.safetensors").unlink()
    job = open_job(job_folder)
    found = {one.step: one for one in job.checkpoints}
    assert (found[100].file, found[100].missing) == (None, "")
    assert "saved no LoRA at step 100" in "\n".join(job.notes)
    assert (found[600].final, found[600].missing) == (True, "fox_style_v1.safetensors")


def test_the_last_file_of_a_training_that_goes_on_stays_with_its_step(job_folder):
    change(job_folder, lambda process: process["train"].update(steps=2000))
    job = open_job(job_folder)
    assert [(one.step, one.final) for one in job.checkpoints] == [(0, False), (250, False), (500, False), (600, True)]


def test_an_unknown_arch_is_named_and_the_job_read(job_folder):
    change(job_folder, lambda process: process["model"].update(arch="dreamer9"))
    job = open_job(job_folder)
    assert len(job.samples) == 3
    assert len(job.previews) == 12
    assert "'dreamer9'" in "\n".join(job.notes)


def test_a_first_round_of_its_own_is_read(job_folder):
    section = {"neg": "", "seed": 3, "prompts": ["[trigger] alone"], "format": "webp"}
    change(job_folder, lambda process: process.update(first_sample=section, train={"skip_first_sample": True}))
    job = open_job(job_folder)
    assert [(one.prompt, one.seed) for one in job.first_samples] == [("f0xst alone", 3)]
    assert job.format == "png"


@pytest.mark.parametrize("section", [[], {"samples": ["text"]}, {"prompts": None}, {"num_frames": "2"}])
def test_a_section_that_the_trainer_dies_of_is_said_and_the_rest_read(job_folder, section):
    change(job_folder, lambda process: process.update(sample=section))
    job = open_job(job_folder)
    assert job.samples == ()
    assert "TypeError" in "\n".join(job.notes)
    assert len(job.checkpoints) == 4


def test_folders_that_are_no_training_are_told_apart(job_folder, tmp_path):
    for edit, word in (
        (lambda process: process.update(type="InferenceEngine"), "inference engine"),
        (lambda process: (process.update(type="Qwen3VLCaptioner"), process.pop("sample")), "trains nothing"),
    ):
        change(job_folder, edit)
        with pytest.raises(FileError, match=word):
            open_job(job_folder)
    (tmp_path / "engine").mkdir()
    with pytest.raises(FileError, match=r"neither config\.yaml"):
        open_job(tmp_path / "engine")
    (tmp_path / "engine" / "engine.json").write_text("{}")
    with pytest.raises(FileError, match="inference engine"):
        open_job(tmp_path / "engine")
    with pytest.raises(FileError, match="no folder"):
        open_job(tmp_path / "nowhere")


def test_a_fork_s_trainer_is_read_with_a_note(job_folder):
    change(job_folder, lambda process: process.update(type="my_trainer"))
    assert "'my_trainer'" in open_job(job_folder).notes[0]


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE = {
    "aliases": BOMB,
    "itself": "config: &a {name: x, process: *a}",
    "code": "config: !!python/object/apply:os.system ['true']",
    "a module": "!!python/name:os.system",
    "depth": "[" * 5000,
    "depth by indentation": "".join(" " * i + "- \n" for i in range(200)),
    "a tag": '!!int ""',
    "a tag of the wrong kind": "!!timestamp x",
    "no mapping": "- 1",
    "no YAML": "a: [",
    "a date": "config: {name: x, process: [{type: sd_trainer, date: 2024-01-01}]}",
    "a set": "config: {name: x, process: [{type: sd_trainer, one: !!set {a}}]}",
    "a long value": "config: " + "1:" * 50_000 + "1",
    "no process": "config: {name: x}",
    "no name": "config: {process: []}",
    "a name of lists": "config: {name: [x], process: []}",
    "bytes": "\udcff",
    "an ordered dict of nothing": "!!python/object/apply:collections.OrderedDict [[1]]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_config_is_one_clear_error(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    began = time.perf_counter()
    with pytest.raises(FileError) as error:
        open_job(tmp_path)
    assert time.perf_counter() - began < 5
    assert str(tmp_path.parent) not in str(error.value)
    assert tmp_path.name in str(error.value)


def test_a_config_of_too_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileError, match="bytes"):
        open_job(tmp_path)


def test_links_that_lead_out_of_the_folder_are_not_followed(job_folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, target in (
        ("samples/5__000000800_0.png", next((job_folder / "samples").glob("*.png"))),
        ("fox_style_v1_000000700.safetensors", job_folder / "fox_style_v1.safetensors"),
    ):
        shutil.copy(target, outside / target.name)
        (job_folder / name).symlink_to(outside / target.name)
    job = open_job(job_folder)
    assert job.preview(800, 0) is None
    assert "leads out of the job's folder" in "\n".join(job.notes)
    assert all(one.file is None or one.step != 700 for one in job.checkpoints)
    shutil.move(job_folder / "samples", outside / "samples")
    (job_folder / "samples").symlink_to(outside / "samples")
    assert open_job(job_folder).previews == ()
    # the folder itself may be a link
    (tmp_path / "link").symlink_to(job_folder)
    assert len(open_job(tmp_path / "link").checkpoints) > 3
    shutil.copy(job_folder / "config.yaml", outside / "config.yaml")
    (job_folder / "config.yaml").unlink()
    (job_folder / "config.yaml").symlink_to(outside / "config.yaml")
    with pytest.raises(FileError, match="neither"):
        open_job(job_folder)


def test_two_thousand_samples_are_read_in_seconds(job_folder):
    prompts = [{"prompt": f"[trigger] number {i} --d {i}", "width": 64} for i in range(2000)]
    change(job_folder, lambda process: process["sample"].update(samples=prompts))
    source = next((job_folder / "samples").iterdir()).read_bytes()
    for step in (0, 250):
        for index in range(2000):
            (job_folder / "samples" / f"99999999999999__{step:09d}_{index}.png").write_bytes(source[:100])
    began = time.perf_counter()
    job = open_job(job_folder)
    found = [job.preview(250, index) for index in range(2000)]
    took = time.perf_counter() - began
    assert [one.index for one in found if one] == list(range(2000))
    assert [one.seed for one in job.samples] == list(range(2000))
    assert took < 10  # measured: 0.6 s with libyaml


def test_notes_and_errors_hold_no_absolute_path(job_folder):
    (job_folder / "fox_style_v1.safetensors").write_bytes(b"x")
    (job_folder / "samples" / "odd\nname.png").write_bytes(b"x")
    job = open_job(job_folder)
    assert job.notes
    assert not re.search(r"(^|[\s'\"])/\w", "\n".join(job.notes))
