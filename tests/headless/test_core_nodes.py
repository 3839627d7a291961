"""The stand-ins of ComfyUI's own nodes, and the command line over them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.core_nodes import CORE_CLASSES, LoadImage, PreviewAny, SaveImage
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import FileError, WorkflowError
from PIL import Image


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PlainHost]:
    (tmp_path / "input" / "sub").mkdir(parents=True)
    plain = PlainHost(tmp_path / "models", tmp_path / "input", tmp_path / "output")
    use_host(plain)
    yield plain
    use_host(None)


def test_load_image_turns_and_masks(host: PlainHost) -> None:
    pixels = numpy.arange(2 * 3 * 4, dtype=numpy.uint8).reshape(2, 3, 4) * 10
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    Image.fromarray(pixels, "RGBA").save(host.input / "sub" / "a.png", exif=upside_down)
    image, mask = LoadImage().load_image("sub/a.png [input]")
    turned = torch.from_numpy(pixels[::-1, ::-1].copy()).float() / 255
    assert torch.equal(image, turned[None, :, :, :3])
    assert torch.equal(mask, 1 - turned[None, :, :, 3])


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("RGB", (255, 0, 51), (1.0, 0.0, 0.2)), ("L", 51, (0.2, 0.2, 0.2)), ("I;16", 13107, (0.2, 0.2, 0.2))],
)
def test_load_image_modes(host: PlainHost, mode: str, value: Any, expected: tuple[float, ...]) -> None:
    Image.new(mode, (3, 2), value).save(host.input / "a.png")
    image, mask = LoadImage().load_image("a.png")
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.tensor(expected).expand(1, 2, 3, 3))
    assert torch.equal(mask, torch.zeros(1, 64, 64))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope.png", "is not there"),
        ("../a.png", "is refused"),
        ("a.png [output]", "output folder"),
        ("text.png", "cannot be read"),
    ],
)
def test_load_image_says_why_not(host: PlainHost, name: str, words: str) -> None:
    (host.input / "text.png").write_text("not a picture", encoding="utf-8")
    with pytest.raises(FileError, match=words):
        LoadImage().load_image(name)


def test_a_missing_picture_stops_the_run_before_it_starts(host: PlainHost) -> None:
    prompt = {
        "1": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "nope.png"}},
    }
    with pytest.raises(WorkflowError, match=r"cannot run:\n- node 2 \(LoadImage\): image 'nope.png' is not there"):
        run_prompt(prompt, CORE_CLASSES)


def test_save_image_cuts_off_and_counts_on(host: PlainHost) -> None:
    batch = torch.tensor([[-0.5, 0.0, 0.5], [0.999, 1.0, 7.0]])[:, None, None, :]
    for start in (1, 3):
        saved = SaveImage().save_images(batch, "sub/p", prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
        names = [f"p_{start:05}_.png", f"p_{start + 1:05}_.png"]
        assert saved["ui"]["images"] == [{"filename": name, "subfolder": "sub", "type": "output"} for name in names]
        assert saved["result"][0] is batch
    first, second = (Image.open(host.output / "sub" / name) for name in ("p_00003_.png", "p_00004_.png"))
    assert (first.getpixel((0, 0)), second.getpixel((0, 0))) == ((0, 0, 127), (254, 255, 255))
    assert first.info == {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (True, "True"), (1.5, "1.5"), (None, "None"), ([1], "[\n    1\n]"), ({1}, "{1}")]
)
def test_preview_any(value: Any, text: str) -> None:
    assert PreviewAny().main(value) == {"ui": {"text": (text,)}, "result": (text,)}


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("PrimitiveInt", "5", "5"),
        ("PrimitiveFloat", 5, "5.0"),
        ("PrimitiveString", 5, "5"),
        ("PrimitiveStringMultiline", "a\nb", "a\nb"),
        ("PrimitiveBoolean", 1, "True"),
    ],
)
def test_primitives(host: PlainHost, kind: str, given: Any, expected: str) -> None:
    prompt = {
        "1": {"class_type": kind, "inputs": {"value": given}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    assert run_prompt(prompt, CORE_CLASSES).outputs == {"2": {"text": (expected,)}}


WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "LoadImage", "widgets_values": ["a.png", "image"], "outputs": [{"type": "IMAGE"}]},
        {"id": 2, "type": "SaveImage", "widgets_values": ["x"], "inputs": [{"name": "images", "link": 1}]},
        {"id": 3, "type": "PreviewImage", "inputs": [{"name": "images", "link": 2}]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 1, 0, 3, 0, "IMAGE"]],
}


def test_command_line(tmp_path: Path, host: PlainHost, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "a.png")
    output, report = tmp_path / "out", tmp_path / "report.json"
    arguments = [str(tmp_path / "w.json"), "--models", str(tmp_path), "--output", str(output), "--report", str(report)]
    assert run_command([*arguments, "--set", "SaveImage.filename_prefix=sub/y"]) == 0
    picture = output / "sub" / "y_00001_.png"
    assert capsys.readouterr().out == f"{picture}\n"
    assert Image.open(picture).getpixel((0, 0)) == (9, 8, 7)
    assert json.loads(Image.open(picture).info["workflow"]) == WORKFLOW
    assert [path.name for path in (output / "temp").iterdir()] == ["preview_00001_.png"]
    content = json.loads(report.read_text(encoding="utf-8"))
    assert (content["images"], content["reports"], content["seconds"] > 0) == (["sub/y_00001_.png"], {}, True)


def test_command_line_says_what_is_wrong(tmp_path: Path, host: PlainHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([str(tmp_path / "nope.json"), "--models", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: Workflow ")
    with pytest.raises(SystemExit):
        run_command([str(tmp_path / "nope.json")])
    assert "--models is needed" in capsys.readouterr().err
