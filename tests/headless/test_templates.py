"""The example workflows are what ``tasks.py templates`` writes, and what ComfyUI's page asks of a template holds."""

from __future__ import annotations

import io
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from comfyui_aitk.headless.templates.command import FOLDER, template_files
from comfyui_aitk.headless.templates.drawing import NOTE
from comfyui_aitk.headless.templates.model_files import SUBJECTS
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.models import catalogue
from comfyui_aitk.pipelines.run.report import pack_version
from PIL import Image

FILES = dict(template_files())
WORKFLOWS = {name: json.loads(content) for name, content in FILES.items() if name.endswith(".json")}
WRITE = "run `python3 tasks.py templates`"
# frontend 1.45, missingModelScan.ts: a widget with such a value is taken for a model file, and looked for
MODEL_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".onnx", ".gguf")


def test_the_shipped_files_are_what_the_command_writes():
    assert {path.name for path in FOLDER.iterdir()} == FILES.keys(), WRITE
    for name, content in FILES.items():
        if isinstance(content, str):
            assert (FOLDER / name).read_text("utf-8") == content, f"{name}: {WRITE}"
        else:
            # another FreeType draws letters, and another libjpeg rounds, a little otherwise
            drawn, shipped = (_pixels(Image.open(file)) for file in (io.BytesIO(content), FOLDER / name))
            assert np.abs(drawn - shipped).mean() < 2, f"{name}: {WRITE}"


def test_each_model_has_a_template_and_each_template_a_thumbnail():
    for facts in catalogue().values():
        feature = "Control image" if SUBJECTS[facts.id].edits else "Text to image"
        assert f"{feature} - {facts.title}.json" in FILES
    for name in WORKFLOWS:
        assert Image.open(FOLDER / f"{Path(name).stem}.jpg").size == (400, 400)
        # it stands in an address as it is, is a message of the page's translator, and a file of Windows
        assert re.fullmatch(r"[A-Za-z0-9 .,-]+", name), name


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_overlaps(name):
    boxes = {(node["id"], node["type"]): _box(node) for node in WORKFLOWS[name]["nodes"]}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)
    groups = [group["bounding"] for group in WORKFLOWS[name]["groups"]]
    for (_, kind), (left, top, right, bottom) in boxes.items():
        around = [g for g in groups if g[0] < left and g[1] < top and right < g[0] + g[2] and bottom < g[1] + g[3]]
        assert len(around) == (kind != NOTE)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_editor_finds_the_pack_and_the_files(name):
    for node in WORKFLOWS[name]["nodes"]:
        properties = node["properties"]
        if node["type"] in NODE_CLASS_MAPPINGS:
            assert (properties["cnr_id"], properties["ver"]) == ("aitk-nodes", pack_version())
        offered = {one["name"] for one in properties.get("models", ())}
        # else a fresh ComfyUI opens it with an error that nobody can mend
        named = {value for value in node.get("widgets_values", ()) if str(value).endswith(MODEL_FILE)}
        assert named == offered
        for one in properties.get("models", ()):
            assert one["url"].startswith("https://huggingface.co/")
            assert one["url"].endswith(f"/{one['name']}")


def _box(node: dict) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, with the title over it."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - 40, x + width, y + height


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)
