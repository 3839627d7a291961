"""Saved pictures: whole or not there, never in another one's place, under the name that the workflow asks for."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.core_nodes import CORE_CLASSES
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.file_names import fill_in
from comfyui_aitk.pipelines.errors import AITKError, FileError
from comfyui_aitk.pipelines.pictures import saving
from PIL import Image

SAVE = NODE_CLASS_MAPPINGS["AITKSaveImage"]
PICTURES = torch.zeros(2, 8, 16, 3)
NOW = datetime(2026, 3, 9, 5, 7, 8)
PROMPT = {
    "1": {"class_type": "AITKSampler", "inputs": {"seed": 7, "guidance_scale": 4.0, "prompt": 'a: "b"/c', "on": True}},
    "2": {"class_type": "Other", "inputs": {"x": 2.5, "wire": ["1", 0]}, "_meta": {"title": "My node"}},
}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["AITKSaveImage", "SaveImage"])
def save(request, host) -> Callable[[str], list[str]]:
    """Saves two pictures under a prefix with either node; gives their names."""

    def save(prefix: str, images: torch.Tensor = PICTURES) -> list[str]:
        if request.param == "SaveImage":
            shown = CORE_CLASSES["SaveImage"]().save_images(images, prefix, PROMPT)
        else:
            shown = SAVE().save(images, None, prefix, "png", PROMPT)
        return [entry["filename"] for entry in shown["ui"]["images"]]

    return save


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "more", [{}, {"prompt": PROMPT}, {"prompt": PROMPT, "extra_pnginfo": {"workflow": "x" * 99_999}}], ids=len
)
def test_a_picture_is_saved_without_a_report(host, format, more):
    (entry, _) = SAVE().save(PICTURES, filename_prefix="p", format=format, **more)["ui"]["images"]
    image = Image.open(host.output / entry["filename"])
    texts = image.text if format == "png" else dict(v.split(":", 1) for v in image.getexif().values())
    assert "aitk_report" not in texts
    if more and not (format == "jpg" and len(more) > 1):
        assert json.loads(texts["prompt"]) == PROMPT


def test_the_report_is_optional_and_nothing_has_moved(host):
    declared = SAVE.INPUT_TYPES()
    assert "report" in declared["optional"]
    assert [*declared["required"], *declared["optional"]] == ["images", "report", "filename_prefix", "format"]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("%date:yyyy-MM-dd%/p", "2026-03-09/p"),
        ("%date:yy.M.d hh:mm:ss%", "26.3.9 05_07_08"),
        ("%date:yyyyMMdd_hhmmss%", "20260309_050708"),
        ("s%AITKSampler.seed%", "s7"),
        ("%AITKSampler.guidance_scale%_%My node.x%", "4_2.5"),
        ("%AITKSampler.on%", "true"),
        ("%AITKSampler.prompt%", "a_ _b__c"),
        ("%My node.wire%", "%My node.wire%"),
        ("%None.seed%", "%None.seed%"),
        ("%AITKSampler.none%", "%AITKSampler.none%"),
        ("%width%x%height%", "%width%x%height%"),
        ("50%", "50%"),
    ],
)
def test_names_are_filled_in_as_the_page_does(prefix, expected):
    assert fill_in(prefix, PROMPT, None, NOW) == expected


def test_a_node_s_own_search_name_counts_before_its_title():
    workflow = {"nodes": [{"id": 2, "properties": {"Node name for S&R": "mine"}}, {"id": 1}]}
    assert fill_in("%mine.x% %AITKSampler.seed% %Other.x%", PROMPT, workflow) == "2.5 7 %Other.x%"


def test_names_are_filled_in_by_either_node(save, host):
    assert save("%date:yyyy%_%AITKSampler.seed%") == [f"{datetime.now().year}_7_{n:05}_.png" for n in (1, 2)]
    assert not [path for path in host.output.rglob("*") if "%" in path.name or ":" in path.name]


def test_a_name_that_was_taken_meanwhile_is_left_alone(save, host, monkeypatch):
    first = save("p")
    target = type(host).save_target
    # what another process sees that listed the folder a moment ago
    seen = replace(target(host, "q", 1, 1), stem="p")
    monkeypatch.setattr(type(host), "save_target", lambda *_, **__: seen)
    before = {name: (host.output / name).read_bytes() for name in first}
    assert save("p", PICTURES + 1) == ["p_00003_.png", "p_00004_.png"]
    assert {name: (host.output / name).read_bytes() for name in first} == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_many_writers_in_one_folder_lose_nothing(tmp_path, monkeypatch, links):
    if not links:

        def refused(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    names = [f"p_{n:05}_.png" for n in range(1, 200)]

    def write(number: int) -> Path:
        return saving.save_new(tmp_path, names, lambda file: file.write(str(number).encode() * 5000))

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(write, range(100)))
    assert sorted(path.name for path in paths) == _names(tmp_path) == names[:100]
    assert all(path.read_bytes() == str(number).encode() * 5000 for number, path in enumerate(paths))


def _fork_and_save(folder: Path, mark: bytes) -> None:
    for _ in range(40):
        saving.save_new(folder, (f"p_{n:05}_.png" for n in range(1, 999)), lambda file: file.write(mark * 1000))


def test_two_processes_in_one_folder_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fork_and_save, args=(tmp_path, mark)) for mark in (b"a", b"b", b"c")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert sorted(found) == sorted([b"a" * 1000] * 40 + [b"b" * 1000] * 40 + [b"c" * 1000] * 40)


def test_a_program_that_is_killed_leaves_no_cut_picture(tmp_path):
    code = (
        "import sys, time, importlib.util\n"
        "from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('tasks', {str(Path(__file__).parents[2] / 'tasks.py')!r})\n"
        "tasks = importlib.util.module_from_spec(spec); spec.loader.exec_module(tasks); tasks.load_pack()\n"
        "from comfyui_aitk.pipelines.pictures.saving import save_new\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); print('now', flush=True); time.sleep(60)\n"
        "save_new(Path(sys.argv[1]), ['p.png'], write)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    (draft,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.\w+\.part", draft.name)
    # a program that was stopped for a day still writes it
    day = time.time() - 86_400
    os.utime(draft, (day, day))
    saving.remove_leftovers(tmp_path)
    assert _names(tmp_path) == [draft.name]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _names(tmp_path) == [draft.name]
    # of a moment ago: its lock may be on the way
    os.utime(draft)
    saving.remove_leftovers(tmp_path)
    assert _names(tmp_path) == [draft.name]
    os.utime(draft, (day, day))
    saving.remove_leftovers(tmp_path)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("name", ["p.part", f".{'a' * 31}.part", f".{'A' * 32}.part", f".{'a' * 32}.part.png"])
def test_only_hidden_files_of_our_own_are_removed(save, host, name):
    host.output.mkdir()
    linked = host.output / f".{'c' * 32}.part"
    linked.symlink_to(host.output / name)
    old = [host.output / name, host.output / f".{'b' * 32}.part"]
    for path in old:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    save("x")
    assert set(_names(host.output)) == {name, linked.name, "x_00001_.png", "x_00002_.png"}


def test_a_full_disk_is_said_and_leaves_nothing(save, host, monkeypatch):
    def full(self: Image.Image, file, *_: object, **__: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(host.output))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(FileError, match="cannot be saved: No space left on device") as caught:
        save("p")
    assert str(host.output) not in str(caught.value)
    assert _names(host.output) == []


def test_an_output_folder_that_is_gone_is_said(save, host, monkeypatch):
    target = type(host).save_target

    def gone(self, *args: object, **named: object):
        found = target(self, *args, **named)
        found.folder.rmdir()
        return found

    monkeypatch.setattr(type(host), "save_target", gone)
    with pytest.raises(FileError, match="cannot be saved: No such file or directory"):
        save("sub/p")


def test_an_output_folder_that_is_a_file_is_said(save, host):
    host.output.parent.mkdir(exist_ok=True)
    host.output.write_text("")
    with pytest.raises(FileError, match="cannot be made: ") as caught:
        save("sub/p")
    assert str(host.output) not in str(caught.value)


@pytest.mark.parametrize(
    "prefix", ["%a%" * 2000, "x" * 255, "x" * 244, "猫" * 85, "x" * 256 + "/y", "a\0b", "", "..", 5, None]
)
def test_a_name_that_no_file_can_have_is_refused_before_the_run_and_in_it(save, host, prefix):
    if prefix is not None:
        for cls in (SAVE, CORE_CLASSES["SaveImage"]):
            assert "filename_prefix" in cls.VALIDATE_INPUTS(filename_prefix=prefix)
    with pytest.raises(AITKError, match="filename_prefix") as caught:
        save(prefix)
    assert len(str(caught.value)) < 300


def test_the_longest_name_is_saved(save, host):
    assert save("x" * 243)[0] == "x" * 243 + "_00001_.png"


def test_a_counter_of_thousands_of_digits_is_no_counter(save, host):
    host.output.mkdir()
    (host.output / f"p_{'9' * 200}_.png").write_bytes(b"")
    assert save("p")[0] == "p_00001_.png"


@pytest.mark.parametrize(
    "images",
    [
        None, 5, torch.zeros(8, 16, 3), torch.zeros(1, 8, 16, 2), torch.zeros(0, 8, 8, 3),
        torch.full((1, 8, 8, 3), 255, dtype=torch.uint8),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named(save, images):
    with pytest.raises(AITKError, match="images"):
        save("p", images)


@pytest.mark.parametrize(("format", "side"), [("webp", 16_384), ("jpg", 65_501)])
def test_a_picture_too_large_for_its_format_is_named(host, format, side):
    for images in (torch.zeros(1, 1, side, 3), torch.zeros(1, side, 1, 3)):
        with pytest.raises(AITKError, match=r"images is [\d,]+ x [\d,]+ pixels, and the format has at most"):
            SAVE().save(images, filename_prefix="p", format=format)
    assert SAVE().save(images, filename_prefix="p", format="png")["ui"]["images"]


def test_half_precision_is_saved_by_either_node(save, host):
    (name, _) = save("p", torch.full((2, 8, 8, 3), 0.5, dtype=torch.bfloat16))
    assert Image.open(host.output / name).getpixel((0, 0))[0] in (127, 128)


def test_a_workflow_that_json_cannot_hold_is_left_out_and_the_picture_saved(host):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    (entry,) = SAVE().save(PICTURES[:1], filename_prefix="p", prompt=PROMPT, extra_pnginfo={"workflow": deep})["ui"][
        "images"
    ]
    assert set(Image.open(host.output / entry["filename"]).text) == {"prompt"}


def test_many_placeholders_are_filled_in_from_a_large_graph():
    prompt = {str(n): {"class_type": f"N{n}", "inputs": {"x": n}} for n in range(5000)}
    assert fill_in("%N4999.x%" * 5000, prompt) == "4999" * 5000


def test_hostile_metadata_is_saved_or_left_out(host):
    extra = {"workflow": {"a": "\ud800"}, "na\nme": 1, "x" * 500: 2, "猫": 3}
    (entry,) = SAVE().save(PICTURES[:1], "half \ud800 \0", "p", "png", PROMPT, extra)["ui"]["images"]
    assert set(Image.open(host.output / entry["filename"]).text) == {"prompt", "workflow", "aitk_report"}


def test_comfyui_s_own_words_for_a_folder_hold_no_path(monkeypatch, tmp_path):
    from types import ModuleType

    from comfyui_aitk.nodes.host.comfyui import ComfyHost

    paths = ModuleType("folder_paths")
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    for error in (Exception(f"**** ERROR: {tmp_path}"), denied):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        vars(paths).update(get_save_image_path=refuse, get_output_directory=lambda: str(tmp_path))
        with pytest.raises(FileError) as caught:
            ComfyHost().save_target("p", 1, 1)
        assert str(tmp_path) not in str(caught.value)
