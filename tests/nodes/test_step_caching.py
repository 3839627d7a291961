"""Step caching of AITK Runtime Options, through the nodes: off by default, and said where it is on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from comfyui_aitk.nodes.runtime_options import AITKRuntimeOptions
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.options import RuntimeOptions
from rendering import render

LOAD = {"model": "lumina2", "weights": "tiny"}


def _options(**changed: object) -> RuntimeOptions:
    (options,) = AITKRuntimeOptions().make("none", "none", text_encoder_attention="auto", **changed)  # pyright: ignore
    return options


def test_off_it_changes_nothing_and_on_it_says_what_it_changed(host):
    plain = render(LOAD, steps=6)
    # as in a workflow that was saved before there was the input
    off = render(LOAD | {"options": _options()}, steps=6)
    zero = render(LOAD | {"options": _options(step_caching=0)}, steps=6)
    on = render(LOAD | {"options": _options(step_caching=1.0)}, steps=6)
    again = render(LOAD, steps=6)
    assert all(torch.equal(plain[4]["samples"], same[4]["samples"]) for same in (off, zero, again))
    assert not torch.equal(plain[0], on[0])
    report = json.loads(on[6])
    assert report["step_caching"] == {"threshold": 1.0, "block_calls": 24, "reused": 10}
    assert any("step_caching is on at 1: 10 of 24 block calls" in note for note in report["notes"])
    assert json.loads(again[6])["step_caching"] is None
    assert engine().counters.parts_loaded == 3


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, True, "0.1", None])
def test_what_is_no_threshold_is_refused(value):
    with pytest.raises(InputError, match="step_caching is"):
        _options(step_caching=value)
