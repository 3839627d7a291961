"""A replay's page: one file that holds its report, says nothing as HTML that is text, and asks no network."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import numpy as np
import pytest
from comfyui_aitk.headless.replay_page import Verdict, page, write_page
from comfyui_aitk.pipelines.compare.heat import LEGEND, heat_map
from comfyui_aitk.pipelines.compare.measure import difference
from comfyui_aitk.pipelines.errors import FileError, InputError
from javascript import NODE
from PIL import Image

PARTS = Path(page.__file__).parent
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \u2028 \ud800 & ' \" $script ${data} пёс"
VOID = {"meta", "input", "link", "img", "br"}


class Elements(HTMLParser):
    """Every element with its attributes and its own first text; every end that no start fits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.stray: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == self.found[-1][0]:
            self.texts[-1] += data

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.stray.append(tag)

    def text(self, tag: str, **attributes: str) -> str:
        (found,) = [
            text
            for (name, has), text in zip(self.found, self.texts, strict=True)
            if name == tag and attributes.items() <= has.items()
        ]
        return found

    def data(self) -> dict:
        return json.loads(self.text("script", id="data"))

    def policy(self) -> dict[str, str]:
        (policy,) = [has["content"] for name, has in self.found if has.get("http-equiv") == "Content-Security-Policy"]
        return dict(rule.split(" ", 1) for rule in policy.split("; "))


def read(out: Path) -> Elements:
    elements = Elements()
    elements.feed(out.read_text("utf-8"))
    elements.close()
    return elements


def cell(number: int, **other: object) -> dict:
    return {
        "step": 250 * (number // 3),
        "final": False,
        "index": number % 3,
        "strength": 1.0,
        "prompt": HOSTILE,
        "negative": None,
        "seed": 2**63 + number,
        "size": [24, 16],
        "files": {
            "trainer": f"cells/{number} #1%.png",
            "ours": f"cells/{number}.jpg",
            "engine": None,
            "heat_map": None,
        },
        "metrics": {"max": 3, "mean": 0.25, "share": 0.1, "psnr": 47.5, "ssim": 0.99, "lpips": None},
        "verdict": "same picture",
        "verdict_words": "The same picture, different by 0.25 levels.",
        "causes": ["The LoRA was saved in float16."],
        "error": None,
        "oracle": None,
        **other,
    }


def asked(cell: dict) -> dict:
    """The same where AI Toolkit's engine was asked too."""
    pair = {"pair": ["ours", "engine"], "verdict": cell["verdict"], "metrics": cell["metrics"]}
    oracle = {"finding": HOSTILE, "words": HOSTILE, "pairs": [pair]}
    return {**cell, "files": {**cell["files"], "engine": cell["files"]["ours"]}, "oracle": oracle}


@pytest.fixture
def report(tmp_path: Path) -> dict:
    """Four cells with their pictures in ``tmp_path``."""
    (tmp_path / "cells").mkdir()
    for number in range(4):
        Image.new("RGB", (24, 16), (number, 90, 200)).save(tmp_path / f"cells/{number} #1%.png")
        Image.new("RGB", (24, 16), (number, 91, 200)).save(tmp_path / f"cells/{number}.jpg")
    return {
        "job": HOSTILE,
        "model": HOSTILE,
        "trained_with": "0.12.26",
        "date": "2026-11-28",
        "environment": {"torch": "2.13.0", HOSTILE: HOSTILE},
        "notes": [HOSTILE],
        "cells": [*(cell(number) for number in range(3)), asked(cell(3))],
    }


def test_the_page_holds_its_report_and_its_pictures(report, tmp_path):
    report["something"] = "of the replay's own"
    write_page(report, tmp_path, tmp_path / "new" / "replay.html")
    data = read(tmp_path / "new" / "replay.html").data()

    pictures, where, legend = data.pop("pictures"), data.pop("where"), data.pop("legend")
    assert [tuple(colour) for *_, colour in legend] == [colour for *_, colour in LEGEND]
    del report["something"]
    # JavaScript would round the seeds
    assert data == {**report, "cells": [{**cell, "seed": str(cell["seed"])} for cell in report["cells"]]}
    assert "inside of this file" in where
    assert len(pictures) == 8
    for name, link in pictures.items():
        kind, content = link.split(";base64,")
        assert kind == ("data:image/png" if name.endswith("png") else "data:image/jpeg")
        assert base64.b64decode(content) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("embedded", [True, False])
def test_nothing_of_the_report_is_html_and_nothing_is_asked_of_a_network(report, tmp_path, monkeypatch, embedded):
    if not embedded:
        monkeypatch.setattr(page, "MOST_EMBEDDED", 10)
    out = tmp_path / "replay.html"
    write_page(report, tmp_path, out)
    elements = read(out)

    assert (elements.stray, elements.open) == ([], [])
    # one script of data, one of code, and no element that loads or does something by itself
    assert [has.get("type") for name, has in elements.found if name == "script"] == ["application/json", None]
    attributes = {key for _, has in elements.found for key in has}
    assert not {key for key in attributes if key in {"src", "href", "srcset", "style"} or key.startswith("on")}
    assert elements.text("title").startswith("</script><script>alert(1)")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", out.read_text("utf-8").split('<script id="data"')[0])

    policy = elements.policy()
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == ("data:" if embedded else "'self' file:")
    for rule, text in [("script-src", elements.texts[-1]), ("style-src", elements.text("style"))]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"


def test_large_pictures_stay_beside_the_page(report, tmp_path, monkeypatch):
    amount = sum(path.stat().st_size for path in (tmp_path / "cells").iterdir())
    monkeypatch.setattr(page, "MOST_EMBEDDED", amount - 1)
    (tmp_path / "pages").mkdir()
    write_page(report, tmp_path, tmp_path / "pages" / "replay.html")
    data = read(tmp_path / "pages" / "replay.html").data()
    assert "files beside this one" in data["where"]
    for name, link in data["pictures"].items():
        # a browser would take these for a fragment, a query, an escape
        assert not set("#? ") & set(link)
        assert (tmp_path / "pages" / unquote(link)).resolve() == (tmp_path / name).resolve()

    monkeypatch.setattr(page, "MOST_EMBEDDED", amount)
    write_page(report, tmp_path, tmp_path / "pages" / "replay.html")
    assert "inside of this file" in read(tmp_path / "pages" / "replay.html").data()["where"]


def test_all_of_a_large_grid_is_there(report, tmp_path):
    none = {"trainer": None, "ours": None, "engine": None, "heat_map": None}
    report["cells"] = [cell(number, files=none, verdict="not rendered", error="gone") for number in range(2000)]
    write_page(report, tmp_path, tmp_path / "replay.html")
    found = read(tmp_path / "replay.html").data()["cells"]
    assert [(one["step"], one["index"]) for one in found] == [(250 * (n // 3), n % 3) for n in range(2000)]


FAULTS = {
    "no key": (lambda report: report["cells"][1]["metrics"].pop("ssim"), r"no 'ssim' in cells\[1\].metrics"),
    "a text for a number": (lambda report: report["cells"][0].update(step="250"), r"'250' at cells\[0\].step"),
    "true for a number": (lambda report: report["cells"][0].update(index=True), r"True at cells\[0\].index"),
    "infinity": (
        lambda report: report["cells"][0]["metrics"].update(psnr=float("inf")),
        r"inf at cells\[0\].metrics.psnr, where a finite number belongs",
    ),
    "another verdict": (
        lambda report: report["cells"][2].update(verdict="fine"),
        r"'fine' at cells\[2\].verdict.*one of",
    ),
    "three sides": (lambda report: report["cells"][0].update(size=[1, 2, 3]), r"list at cells\[0\].size"),
    "a pair without its numbers": (
        lambda report: report["cells"][3]["oracle"]["pairs"][0].pop("metrics"),
        r"no 'metrics' in cells\[3\].oracle.pairs\[0\]",
    ),
    "a pair of a heat map": (
        lambda report: report["cells"][3]["oracle"]["pairs"][0].update(pair=["ours", "heat_map"]),
        r"'heat_map' at cells\[3\].oracle.pairs\[0\].pair\[1\], where one of 'trainer', 'engine', 'ours'",
    ),
    "no list": (lambda report: report.update(cells={}), r"dict at cells, where a list belongs"),
    "two in one place": (
        lambda report: report["cells"][3].update(step=0, index=1),
        r"cells\[1\] and cells\[3\] both for step 0, sample 1, strength 1.0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_report_is_refused_by_name(fault, report, tmp_path):
    change, words = FAULTS[fault]
    wrong = copy.deepcopy(report)
    change(wrong)
    with pytest.raises(InputError, match=words):
        write_page(wrong, tmp_path, tmp_path / "replay.html")
    assert not (tmp_path / "replay.html").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cells/9.png", "is not in"),
        ("../outside.png", "outside of"),
        ("/etc/hostname.png", "outside of"),
        ("cells/0.txt", "no picture that a browser shows"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_refused_by_name(name, words, report, tmp_path):
    report["cells"][2]["files"]["ours"] = name
    with pytest.raises(FileError, match=rf"{re.escape(name)}' as cells\[2\].files.ours, which .*{words}"):
        write_page(report, tmp_path, tmp_path / "replay.html")


def test_the_script_makes_no_html_of_texts():
    script = "".join(path.read_text("utf-8") for path in PARTS.glob("*.js"))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", script
    )


CHECKS = """
const cell = (step, index, verdict, max, prompt) => ({
  step, final: false, index, strength: step ? step / 1000 : null, prompt, negative: null, verdict,
  metrics: { max, mean: max, share: 0.12345, psnr: max === 0 ? null : 40, ssim: null, lpips: null },
});
const cells = [
  cell(500, 0, "different", 90, "A Cat"), cell(0, 0, "identical", 0, "a cat in a hat"),
  cell(250, 1, "not rendered", null, "dog"), cell(250, 0, "kernel noise", 5, "a cat"),
];
const filter = (verdicts, checkpoint, prompt, strength = "") =>
  cells.filter((one) => fits(one, { verdicts: new Set(verdicts), checkpoint, strength, prompt }))
    .map((one) => one.step);
const order = (key, falling) => inOrderOf(cells, key, falling).map((one) => one.metrics.max);
console.log(JSON.stringify({
  verdicts: VERDICTS.map((verdict) => verdict.name),
  all: filter([], "", ""), by_verdict: filter(["different", "identical"], "", ""),
  by_checkpoint: filter([], "Step 250", ""), by_prompt: filter([], "", "hat CAT"),
  by_strength: filter([], "", "", "0.25"), bare: filter([], "", "", "no LoRA"), strengths: strengthTexts(cells),
  rising: order("max", false), falling: order("max", true), by_name: order("verdict", false),
  psnr: order("psnr", true),
  columns: each(cells, (one) => columnText(one, false)),
  texts: METRICS.map((metric) => metricText(cells[1], metric)),
  small: few(0.000012), beyond: [beyond(5, 9, 10, 50), beyond(45, 55, 10, 50), beyond(20, 30, 10, 50)],
}));
"""


def in_node(parts: list[str], code: str) -> Any:
    """What a script with these parts of the page's before it prints as JSON."""
    script = "\n".join([*((PARTS / name).read_text("utf-8") for name in parts), code])
    ran = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(ran.stdout)


def test_cells_are_filtered_and_sorted():
    assert in_node(["cells.js"], CHECKS) == {
        "verdicts": list(get_args(Verdict)),
        "all": [500, 0, 250, 250],
        "by_verdict": [500, 0],
        "by_checkpoint": [250, 250],
        "by_prompt": [0],
        "by_strength": [250, 250],
        "bare": [0],
        "strengths": ["no LoRA", "0.25", "0.5"],
        # what was not measured comes last, either way
        "rising": [0, 5, 90, None],
        "falling": [90, 5, 0, None],
        "by_name": [0, 5, 90, None],
        "psnr": [0, 90, None, 5],
        "columns": ["0", "250", "500"],
        "texts": ["0", "0", "12.3 %", "∞ dB", "\u2013", "\u2013"],
        "small": "1.2e-5",
        "beyond": [-5, 5, 0],
    }


@pytest.mark.parametrize("most", [0, 1, 9, 255])
def test_the_page_measures_two_pictures_as_the_comparison_does(most):
    random = np.random.default_rng(most)
    ours = random.integers(0, 256, (13, 21, 3), np.uint8)
    change = random.integers(-most, most + 1, ours.shape) * (random.random(ours.shape) < 0.6)
    trainer = (ours + change).clip(0, 255).astype(np.uint8)
    # as a canvas has them: four values a pixel, of which the last is no colour
    pictures = [
        {"width": 21, "height": 13, "data": np.insert(picture, 3, opaque, axis=2).ravel().tolist()}
        for picture, opaque in ((ours, 255), (trainer, 254))
    ]
    code = f"""
    const [ours, trainer] = {json.dumps(pictures)};
    const heat = [...heatOf(ours, trainer, {json.dumps(LEGEND)})];
    const wider = {{ ...trainer, width: 13, height: 21 }};
    console.log(JSON.stringify({{ found: differenceOf(ours, trainer), heat, other_size: differenceOf(ours, wider) }}));
    """
    measured = in_node(["difference.js"], code)
    expected = difference(ours, trainer)
    psnr = pytest.approx(expected.psnr, abs=1e-12) if expected.differing else None
    assert measured["found"] == {
        "max": expected.maximum,
        "mean": expected.mean,
        "share": expected.share,
        "psnr": psnr,
    }
    heat = np.array(measured["heat"], np.uint8).reshape(13, 21, 4)
    np.testing.assert_array_equal(heat[..., :3], heat_map(ours, trainer))
    assert (heat[..., 3] == 255).all()
    assert measured["other_size"] is None
