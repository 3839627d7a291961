"""The editor's extension: its plain modules run by node, which comes with the type checker, and how all are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.compare import AITKComparePreviews
from comfyui_aitk.nodes.editor import ANSWERS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.load_model import LoadAITKModel
from comfyui_aitk.nodes.lora import ApplyAITKLoRA
from comfyui_aitk.nodes.sampler import AITKSampler
from comfyui_aitk.nodes.save_image import AITKSaveImage
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.models import catalogue
from comfyui_aitk.pipelines.pictures.sizes import snap
from javascript import NODE
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web" / "js"
SIDES = (0, 1, 7, 8, 15, 16, 40, 63, 64, 65, 72, 80, 96, 500, 511, 512, 777, 992, 1000, 1008, 1024, 1032)


def _snapped():
    """Sides as the library snaps them, by every rule of the catalogue; None where it refuses them."""
    for rule in {recipe.size for facts in catalogue().values() for recipe in facts.recipes.values()}:
        for side in SIDES:
            try:
                found = snap(side, 1024, rule, 1 << 14).width
            except InputError:
                found = None
            yield {"rule": asdict(rule), "side": side, "expected": found}


def _modules() -> list[Path]:
    found = sorted(WEB.glob("*.js"))
    assert len(found) > 5
    return found


@pytest.fixture
def report(host):
    """What the sampler sends to the page when it has run."""
    (pipeline,) = LoadAITKModel().load("lumina2", "tiny", "float32")
    pipeline, _, _ = ApplyAITKLoRA().apply(pipeline, "tiny.safetensors", 0.5)
    sampler = AITKSampler()
    done = sampler.sample(pipeline, "a fox", "", 100, 100, 2, 4.0, 42, "reference pipeline")
    return json.loads(done["ui"]["aitk_report"][0])


@pytest.fixture
def pictures(host, report):
    """Files of AITK Save Image: with a graph, and without."""
    graph = {"nodes": [{"id": 1, "type": "AITKSampler", "widgets_values": ["лиса 狐"]}]}
    about = {"report": json.dumps(report), "prompt": {"1": {}}, "extra_pnginfo": {"workflow": graph}}
    found = {}
    for name, format, given in (("jpg", "jpg", about), ("png", "png", about), ("plain", "jpg", {})):
        saved = AITKSaveImage().save(torch.zeros(1, 16, 16, 3), filename_prefix=name, format=format, **given)
        found[name] = str(host.output / saved["ui"]["images"][0]["filename"])
    return found


class Page(PlainHost):
    """A host with a page: ComfyUI's."""

    def page_folder(self):
        return self.output / "temp"


@pytest.fixture
def pairs(host):
    """What AITK Compare Previews sends to the page."""
    use_host(Page(host.models, host.input, host.output, "cpu"))
    ours = torch.zeros(2, 16, 16, 3)
    trainer = ours.clone()
    trainer[1, :4] = 0.2
    (text,) = AITKComparePreviews().compare(ours, trainer)["ui"]["aitk_pairs"]
    for pair in json.loads(text)["pairs"]:
        for role in ("trainer", "ours", "heat_map"):
            assert Image.open(host.output / "temp" / pair[role]["subfolder"] / pair[role]["filename"]).size == (16, 16)
    use_host(host)
    return text


def _types() -> list[str]:
    """The pack's own types of wires."""
    inputs = [
        spec
        for node in NODE_CLASS_MAPPINGS.values()
        for group in node.INPUT_TYPES().values()
        for spec in group.values()
    ]
    names = [spec[0] for spec in inputs if isinstance(spec, tuple)]
    names += [name for node in NODE_CLASS_MAPPINGS.values() for name in node.RETURN_TYPES]
    return sorted({name for name in names if isinstance(name, str) and name.startswith("AITK_")})


def test_the_modules_pass_their_own_tests(tmp_path, report, pictures, pairs):
    facts = tmp_path / "facts.json"
    given = {"facts": ANSWERS["/aitk/models"]({}), "snapped": list(_snapped())}
    given |= {"report": report, "pictures": pictures, "types": _types(), "pairs": pairs}
    given["base"] = ANSWERS["/aitk/base"]({"model": "lumina2", "weights": "tiny"})
    facts.write_text(json.dumps(given), "utf-8")
    tests = sorted(str(path) for path in (ROOT / "tests" / "web").glob("*.test.mjs"))
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", *tests],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "AITK_FACTS": str(facts)},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^# pass (\d+)", done.stdout, re.MULTILINE)
    assert passed is not None and int(passed[1]) > 10


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.name)
def test_a_module_is_checked_asks_no_other_server_and_makes_no_html_of_text(path):
    text = path.read_text("utf-8")
    assert text.startswith("// @ts-check\n")
    assert len(text.splitlines()) < 400
    assert not re.search(r"\binnerHTML\b|\bouterHTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|\.prototype\b", text)
    imports = re.findall(r'^import .* from "([^"]+)";', text, re.MULTILINE)
    assert all((path.parent / name).is_file() for name in imports if name.startswith("./"))
    # the page's own are the only ones from elsewhere
    assert {name for name in imports if not name.startswith("./")} <= {
        "../../../scripts/app.js",
        "../../../scripts/api.js",
    }
