"""Three pictures together: every constellation of verdicts has a meaning, and those with a name the right one."""

from __future__ import annotations

from itertools import product

import pytest
from comfyui_aitk.pipelines.compare.comparison import Verdict
from comfyui_aitk.pipelines.compare.three_ways import FINDINGS, Pair, finding_of

SAME, NOISE, NEAR, FAR = Verdict
LIMITS = "it applies a LoRA as hooks"

# trainer's file and ours, trainer's file and engine, ours and engine -> the finding
MEANINGS = {
    (SAME, SAME, SAME): "all equal",
    (NOISE, SAME, NOISE): "all equal",
    # through a JPEG two are equal that are not before it
    (SAME, SAME, NEAR): "all equal",
    (SAME, NEAR, NEAR): "engine differs",
    (NOISE, FAR, FAR): "engine differs",
    (NEAR, SAME, NEAR): "ours at fault",
    (FAR, SAME, FAR): "ours at fault",
    (NEAR, NEAR, SAME): "recorded run differed",
    (FAR, FAR, NOISE): "recorded run differed",
    (NEAR, NEAR, NEAR): "all near",
    (NEAR, FAR, NEAR): "all near",
    (NEAR, FAR, FAR): "engine far off",
    (FAR, NEAR, FAR): "ours far off",
    (FAR, FAR, NEAR): "recorded run far off",
    (FAR, FAR, FAR): "all differ",
}


@pytest.mark.parametrize("verdicts", MEANINGS)
def test_a_constellation_has_its_meaning(verdicts):
    assert finding_of(dict(zip(Pair, verdicts, strict=True)))[0] == MEANINGS[verdicts]


def test_no_constellation_is_without_meaning():
    found = {finding_of(dict(zip(Pair, verdicts, strict=True)))[0] for verdicts in product(Verdict, repeat=3)}
    assert found == {finding.name for finding in FINDINGS.values()} == set(MEANINGS.values())


@pytest.mark.parametrize("verdicts", MEANINGS)
def test_a_known_limit_is_named_where_the_engine_is_the_odd_one(verdicts):
    name, words = finding_of(dict(zip(Pair, verdicts, strict=True)), limits=LIMITS)
    assert (LIMITS in words) == (name in {"engine differs", "engine far off", "all near", "all differ"})
    assert "No known limit" not in words
    assert LIMITS not in finding_of(dict(zip(Pair, verdicts, strict=True)))[1]


@pytest.mark.parametrize(
    ("verdicts", "finding", "words"),
    [
        ({Pair.OURS_ENGINE: SAME}, "no preview", "Ours and the engine's: identical."),
        ({Pair.OURS_ENGINE: FAR}, "no preview", f"Of the engine is known: {LIMITS}."),
        ({Pair.TRAINER_ENGINE: NEAR}, "no picture of ours", f"Of the engine is known: {LIMITS}."),
        ({}, "engine alone", "Only the engine"),
    ],
)
def test_two_pictures_are_told_as_two(verdicts, finding, words):
    name, said = finding_of(verdicts, limits=LIMITS)
    assert name == finding
    assert words in said
