"""Workflows as people save them: other packs' page-only nodes, wires without lines, and files that are too much."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from comfyui_aitk.headless.cli import run_command
from comfyui_aitk.headless.core_nodes import CORE_CLASSES, CORE_NAMES, LoadImage
from comfyui_aitk.headless.page_nodes import SETTER_OF
from comfyui_aitk.headless.workflow import definitions_of, read_workflow, to_prompt
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError, WorkflowError
from PIL import Image


@pytest.fixture(autouse=True)
def host(tmp_path: Path):
    (tmp_path / "input").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "input" / "a.png")
    plain = PlainHost(tmp_path / "models", tmp_path / "input", tmp_path / "output")
    use_host(plain)
    yield plain
    use_host(None)


def _prompt(*nodes: dict[str, Any], links: list[Any] = [], **more: Any) -> dict[str, Any]:  # noqa: B006
    document = {"nodes": [{"mode": 0, **node} for node in nodes], "links": links, **more}
    return to_prompt(document, definitions_of(CORE_CLASSES, CORE_NAMES))


LOAD = {"id": 1, "type": "LoadImage", "widgets_values": ["a.png"], "outputs": [{"name": "IMAGE", "type": "IMAGE"}]}


def _save(link: int | None = 9, node_id: int = 2) -> dict[str, Any]:
    slots = [{"name": "images", "type": "IMAGE", "link": link}]
    return {"id": node_id, "type": "SaveImage", "widgets_values": ["x"], "inputs": slots}


def _wire(node_id: int, kind: str, link: int | None, name: str = "", mode: int = 0) -> dict[str, Any]:
    slots = [{"name": "IMAGE", "type": "*", "link": link}] if link is not None else []
    return {"id": node_id, "type": kind, "inputs": slots, "widgets_values": [name], "mode": mode}


PLAIN = _prompt  # the same graph with a line from one to the other


def _images(prompt: dict[str, Any]) -> Any:
    return prompt["2"]["inputs"]["images"]


@pytest.mark.parametrize(
    "extra",
    [
        {"id": 7, "type": "Label (rgthree)", "title": "How to"},
        {"id": 7, "type": "Fast Groups Muter (rgthree)", "outputs": [{"name": "OPT_CONNECTION", "type": "*"}]},
        {"id": 7, "type": "Fast Muter (rgthree)", "inputs": [{"name": "Load", "type": "*", "link": 8}]},
        {"id": 7, "type": "Somebody's banner", "widgets_values": ["hello"]},
        {"id": 7, "type": "Bookmark (rgthree)"},
    ],
    ids=lambda extra: extra["type"],
)
def test_page_only_nodes_that_nothing_needs_vanish(extra: dict[str, Any]) -> None:
    links = [[9, 1, 0, 2, 0, "IMAGE"], [8, 1, 0, 7, 0, "*"]]
    assert _prompt(LOAD, _save(), extra, links=links) == _prompt(LOAD, _save(), links=links[:1])


@pytest.mark.parametrize(
    ("nodes", "links"),
    [
        # it would save the picture: leaving it out would lose something
        (
            [LOAD, {"id": 7, "type": "Image Save Plus", "inputs": [{"name": "images", "link": 9}]}],
            [[9, 1, 0, 7, 0, "IMAGE"]],
        ),
        ([{"id": 7, "type": "Foreign Loader", "outputs": [{"type": "IMAGE"}]}, _save()], [[9, 7, 0, 2, 0, "IMAGE"]]),
    ],
)
def test_nodes_that_matter_are_still_named(nodes: list[dict[str, Any]], links: list[Any]) -> None:
    with pytest.raises(WorkflowError, match=r"Unknown node class: '(Image Save Plus|Foreign Loader)' \(node 7"):
        _prompt(*nodes, links=links)


PAIRS = [(setter, getter) for getter, setter in SETTER_OF.items()]


@pytest.mark.parametrize(("setter", "getter"), PAIRS)
def test_set_and_get_are_wires(setter: str, getter: str) -> None:
    links = [[8, 1, 0, 5, 0, "IMAGE"], [9, 6, 0, 2, 0, "IMAGE"]]
    found = _prompt(LOAD, _wire(5, setter, 8, "picture"), _wire(6, getter, None, "picture"), _save(), links=links)
    assert found == _prompt(LOAD, _save(), links=[[9, 1, 0, 2, 0, "IMAGE"]])
    # the Set node's own output, a reroute behind the Get, and a Get of a Get
    links = [[8, 1, 0, 5, 0, "IMAGE"], [9, 5, 0, 2, 0, "IMAGE"]]
    assert _images(_prompt(LOAD, _wire(5, setter, 8, "p"), _save(), links=links)) == ["1", 0]
    links = [
        [8, 1, 0, 5, 0, "IMAGE"], [10, 6, 0, 7, 0, "*"], [11, 8, 0, 12, 0, "*"], [9, 12, 0, 2, 0, "IMAGE"],
    ]  # fmt: skip
    chain = [
        _wire(5, setter, 8, "p"), _wire(6, getter, None, "p"), _wire(7, setter, 10, "q"), _wire(8, getter, None, "q"),
        _wire(12, "Reroute (rgthree)", 11),
    ]  # fmt: skip
    assert _images(_prompt(LOAD, *chain, _save(), links=links)) == ["1", 0]


def test_a_muted_get_carries_nothing() -> None:
    links = [[8, 1, 0, 5, 0, "IMAGE"], [9, 6, 0, 2, 0, "IMAGE"]]
    get = _wire(6, "GetNode", None, "p", mode=2)
    assert "images" not in _prompt(LOAD, _wire(5, "SetNode", 8, "p"), get, _save(), links=links)["2"]["inputs"]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([_wire(6, "GetNode", None, "x" * 10**6)], "gets 'xxx"),
        ([_wire(5, "SetNode", 7, "p"), _wire(6, "GetNode", None, "p")], "circle"),
    ],
)
def test_a_get_that_leads_nowhere_is_named(nodes: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(WorkflowError, match=words) as caught:
        _prompt(*nodes, _save(), links=[[9, 6, 0, 2, 0, "IMAGE"], [7, 6, 0, 5, 0, "IMAGE"]])
    assert len(str(caught.value)) < 500


def test_a_get_in_a_subgraph_finds_the_set_outside() -> None:
    subgraph = {
        "id": "s", "name": "S", "nodes": [_wire(6, "GetNode", None, "p"), _save(1)],
        "links": [{"id": 1, "origin_id": 6, "origin_slot": 0, "target_id": 2, "target_slot": 0}],
    }  # fmt: skip
    found = _prompt(
        LOAD, _wire(5, "SetNode", 8, "p"), {"id": 3, "type": "s"},
        links=[[8, 1, 0, 5, 0, "IMAGE"]], definitions={"subgraphs": [subgraph]},
    )  # fmt: skip
    assert found["3:2"]["inputs"]["images"] == ["1", 0]


def test_a_chain_of_thousands_of_reroutes_is_one_wire() -> None:
    count = 5000
    reroutes = [_wire(100 + n, "Reroute", 100 + n) for n in range(count)]
    links = [[100, 1, 0, 100, 0, "*"], *([100 + n, 99 + n, 0, 100 + n, 0, "*"] for n in range(1, count))]
    prompt = _prompt(LOAD, *reroutes, _save(), links=[*links, [9, 99 + count, 0, 2, 0, "IMAGE"]])
    assert _images(prompt) == ["1", 0]


def _nested(depth: int, uses: int) -> dict[str, Any]:
    inner = [{"id": n, "type": "LoadImage", "widgets_values": ["a.png"]} for n in range(uses)]
    graphs = [{"id": "g0", "name": "g0", "nodes": inner}]
    for level in range(1, depth):
        nodes = [{"id": n, "type": f"g{level - 1}"} for n in range(uses)]
        graphs.append({"id": f"g{level}", "name": f"g{level}", "nodes": nodes})
    return {"definitions": {"subgraphs": graphs}}


@pytest.mark.parametrize(
    ("depth", "uses", "words"), [(12, 10, "more than 200,000 nodes"), (40, 2, "multiply"), (200, 1, "deep")]
)
def test_subgraphs_that_multiply_are_refused_at_once(depth: int, uses: int, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        _prompt({"id": 1, "type": f"g{depth - 1}"}, **_nested(depth, uses))


def test_subgraphs_of_a_sane_depth_are_taken_apart() -> None:
    assert len(_prompt({"id": 1, "type": "g5"}, **_nested(6, 3))) == 3**6


def _png(path: Path, width: int, height: int, chunk: bytes = b"") -> None:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", header) + chunk + part(b"IDAT", zlib.compress(b"\\0" * 1000)) + part(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _text_bomb() -> bytes:
    data = b"a\0\0" + zlib.compress(b"x" * 200 * 2**20, 9)
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: _png(path, 12_000, 12_000), "is too large: 12,000 x 12,000 pixels"),
        (lambda path: _png(path, 60_000, 60_000), "is too large: it has more than"),
        (lambda path: _png(path, 8, 8, _text_bomb()), "cannot be read: it is damaged, or no picture"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), "cannot be read"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    ],
)
def test_pictures_that_are_none_or_too_much_are_named(host: PlainHost, write: Any, words: str) -> None:
    write(host.input / "b.png")
    verdict = LoadImage.VALIDATE_INPUTS("b.png")
    with pytest.raises(AITKError, match=words) as caught:
        LoadImage().load_image("b.png")
    # what a header tells is told before the run
    assert verdict is not True or "damaged" in words
    assert str(host.input) not in str(caught.value)


@pytest.mark.parametrize("name", [5, 1.5, ["a"], {"a": 1}, "x" * 10**6], ids=lambda name: str(name)[:9])
def test_an_image_s_name_of_another_kind_is_named(name: Any) -> None:
    with pytest.raises(AITKError, match="mage") as caught:
        LoadImage().load_image(name)
    assert len(str(caught.value)) < 600


def test_an_input_folder_that_is_not_there_has_no_pictures(host: PlainHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", locked)
    assert LoadImage.INPUT_TYPES()["required"]["image"][0] == []


@pytest.mark.parametrize(
    "text", ['{"1": ' + "9" * 5000 + "}", "[" * 10**5, '{"nodes": 5}'], ids=["digits", "deep", "5"]
)
def test_a_file_that_is_no_workflow_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(WorkflowError):
        read_workflow(tmp_path / "w.json")


GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "%date:yyyy%_%LoadImage.image%"},
    },
}


@pytest.fixture
def command(tmp_path: Path):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))

    def run(*more: str) -> int:
        base = [str(tmp_path / "w.json"), "--models", str(tmp_path), "--input", str(tmp_path / "input")]
        return run_command([*base, *more])

    return run


def test_a_report_that_cannot_be_written_stops_the_command_before_the_run(tmp_path: Path, command, capsys) -> None:
    (tmp_path / "file").write_text("")
    for report in (tmp_path, tmp_path / "file" / "r.json", tmp_path / ("x" * 300) / "r.json"):
        assert command("--output", str(tmp_path / "out"), "--report", str(report)) == 1
        assert "error: --report" in capsys.readouterr().err
    assert [*(tmp_path / "out").iterdir()] == []


def test_an_output_folder_that_cannot_be_used_stops_the_command_before_the_run(tmp_path, command, capsys) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "sub"):
        assert command("--output", str(output)) == 1
        assert "error: --output" in capsys.readouterr().err


def test_a_report_replaces_an_older_one_whole(tmp_path: Path, command, monkeypatch, capsys) -> None:
    report = tmp_path / "r.json"
    report.write_text("older")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert command("--output", str(tmp_path / "out"), "--report", str(report)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert report.read_text() == "older"
    monkeypatch.undo()
    assert command("--output", str(tmp_path / "out"), "--report", str(report)) == 0
    assert json.loads(report.read_text())["images"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".part")) == []
