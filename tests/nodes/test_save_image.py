"""Saved files: exact pixels, the trainer's encoders, workflow and report inside."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
PROMPT = {"1": {"class_type": "X", "inputs": {"text": "naïve 猫"}}}
EXTRA = {"workflow": {"nodes": [], "note": "naïve 猫"}}
REPORT = json.dumps({"prompt": "naïve 猫 🦊"}, ensure_ascii=False)


def _save(host, format: str, **options: object) -> Image.Image:
    images = torch.from_numpy(PIXELS).float()[None] / 255
    inputs = {"prompt": PROMPT, "extra_pnginfo": EXTRA} | options
    shown = NODE_CLASS_MAPPINGS["AITKSaveImage"]().save(images, REPORT, "a/b", format, **inputs)["ui"]
    (entry,) = shown["images"]
    assert entry["subfolder"] == "a"
    assert entry["type"] == "output"
    assert entry["filename"].startswith("b_0000")
    return Image.open(host.output / "a" / entry["filename"])


def _texts(image: Image.Image) -> dict[str, str]:
    if image.format == "PNG":
        return image.text
    return dict(value.split(":", 1) for value in image.getexif().values())


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_pixels_are_encoded_as_the_trainer_does_and_texts_are_inside(host, format):
    image = _save(host, format)
    plain = io.BytesIO()
    # what AI Toolkit does: Image.save(path), no options
    Image.fromarray(PIXELS).save(plain, {"jpg": "JPEG"}.get(format, format.upper()))
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(plain)))
    texts = _texts(image)
    assert json.loads(texts["prompt"]) == PROMPT
    assert json.loads(texts["workflow"]) == EXTRA["workflow"]
    assert json.loads(texts["aitk_report"]) == json.loads(REPORT)


def test_the_core_node_which_truncates_saves_the_sampler_s_pixels(host):
    from comfyui_aitk.headless.core_nodes import CORE_CLASSES
    from comfyui_aitk.pipelines.run.sample import to_images

    every_level = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).repeat(1, 1, 3)
    images = to_images([every_level])
    CORE_CLASSES["SaveImage"]().save_images(images, "core")
    assert np.array_equal(np.asarray(Image.open(host.output / "core_00001_.png")), every_level.numpy())


def test_a_picture_with_alpha_is_saved_as_jpeg_without_it(host):
    images = torch.ones(1, 8, 8, 4)
    NODE_CLASS_MAPPINGS["AITKSaveImage"]().save(images, "{}", "alpha", "jpg")
    assert Image.open(host.output / "alpha_00001_.jpg").mode == "RGB"


def test_a_workflow_too_large_for_jpeg_is_left_out_and_said_so(host, capsys):
    image = _save(host, "jpg", extra_pnginfo={"workflow": {"note": "x" * 70_000}}, unique_id="9")
    assert list(_texts(image)) == ["aitk_report"]
    assert "node 9: b_00001_.jpg was saved without the workflow: it needs 70," in capsys.readouterr().err


def test_metadata_can_be_switched_off(host, monkeypatch):
    monkeypatch.setattr(type(host), "metadata_enabled", lambda self: False)
    for format in ("png", "jpg", "webp"):
        assert _texts(_save(host, format)) == {}


def test_names_count_on_and_fill_in_the_size(host):
    save = NODE_CLASS_MAPPINGS["AITKSaveImage"]().save
    images = torch.zeros(2, 8, 16, 3)
    names = [
        entry["filename"] for _ in range(2) for entry in save(images, "{}", "x_%width%x%height%", "png")["ui"]["images"]
    ]
    assert names == [f"x_16x8_{n:05}_.png" for n in (1, 2, 3, 4)]
