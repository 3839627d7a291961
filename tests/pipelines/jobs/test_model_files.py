"""Which keys of a model section name files: as AI Toolkit's own classes asked for them, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui_aitk.pipelines.jobs.architecture import facts_of
from comfyui_aitk.pipelines.jobs.model_section import read_model, wanted_model

RECORDED = json.loads((Path(__file__).parents[2] / "golden/jobs/model_files.json").read_text("utf-8"))["cases"]
# per model and base, without any such key
PLAIN = {(one["section"]["arch"], one["section"]["name_or_path"]): one for one in RECORDED if len(one["section"]) == 2}
FOLDERS = ("<models>/whole", "<models>/part")


def told(case):
    section = case["section"]
    model, _ = read_model({"model": section, "train": {"dtype": "fp32"}}, "0.12.26")
    key = next((key for key in section if key not in ("arch", "name_or_path")), "")
    return facts_of(model), wanted_model(model), key, PLAIN[section["arch"], section["name_or_path"]]


@pytest.mark.parametrize(
    "case", [one for one in RECORDED if len(one["section"]) > 2], ids=lambda one: str(one["section"])
)
def test_a_key_is_read_where_ai_toolkit_reads_it(case):
    facts, wanted, key, plain = told(case)
    named, base = case["section"][key], case["section"]["name_or_path"]
    if case["error"]:
        assert any(f"model.{key}" in note and "stops" in note for note in wanted.notes)
        return
    if key == "assistant_lora_path":
        assert (wanted.training_adapter, case["loaded"]["adapter"][0]) == (named, named)
        return
    moved = {part for part, place in case["loaded"].items() if place != plain["loaded"][part]}
    rule = facts.job_files.parts.get(key)
    if rule is None:
        assert moved == set()
        assert any(f"model.{key}" in note and "does not read" in note for note in wanted.notes)
        return
    assert wanted.elsewhere == {key: named}
    of_base = {part for part in rule.parts if rule.base_first and plain["loaded"][part][0].startswith(base + "/")}
    of_base |= set(rule.parts) if rule.base_first and base == FOLDERS[0] else set()
    assert moved == set(rule.parts) - of_base
    for part in moved:
        place, subfolder = case["loaded"][part]
        assert place.removeprefix("hub:").startswith(named)
        assert subfolder == ("" if rule.alone else facts.files.parts[part].folder or part)


def test_beside_a_file_the_rest_comes_from_where_ai_toolkit_takes_it():
    for (arch, base), case in PLAIN.items():
        facts, *_ = told(case)
        if base.endswith(".safetensors") and not case["error"]:
            for part in ("text_encoder", "vae"):
                own = facts.files.parts[part].repository
                place = case["loaded"][part][0].removeprefix("hub:")
                assert place.startswith(own.id if own else facts.job_files.file_extras), arch
