"""The client of a ComfyUI server, against a small peer that speaks ComfyUI's protocol."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from comfyui_aitk.headless.core_nodes import CORE_CLASSES
from comfyui_aitk.headless.server import ServerResult, run_on_server
from comfyui_aitk.headless.workflow import definitions_of
from comfyui_aitk.pipelines.errors import AITKError, WorkflowError

PROMPT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "sub/a.png [input]"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}, "_meta": {"title": "Out"}},
}
SAVED = {"filename": "x_00001_.png", "subfolder": "day", "type": "output"}
SHOWN = {"2": {"images": [SAVED, {**SAVED, "type": "temp"}], "aitk_report": ['{"seed": 42}']}}


class Peer:
    """One ComfyUI prompt after the other; what it says is set by the test, what it hears is kept."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = [("executing", {"node": "2"}), ("executing", {"node": None})]
        self.shown: dict[str, Any] = SHOWN
        self.answer: tuple[int, dict[str, Any]] = (200, {"prompt_id": "p1", "number": 1, "node_errors": {}})
        self.picture = b"picture"
        self.heard: dict[str, Any] = {}
        self.url = ""
        self._sockets: dict[str, web.WebSocketResponse] = {}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/object_info", self.object_info),
            web.get("/ws", self.websocket),
            web.post("/prompt", self.prompt),
            web.post("/upload/image", self.upload),
            web.post("/queue", self.note),
            web.post("/interrupt", self.note),
            web.get("/history/p1", self.history),
            web.get("/view", self.view),
        ]

    async def object_info(self, request: web.Request) -> web.Response:
        return web.json_response(definitions_of(CORE_CLASSES))

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query["clientId"]] = socket
        async for _ in socket:
            pass
        return socket

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.heard["prompt"] = body
        socket = self._sockets[body["client_id"]]
        await socket.send_bytes(b"\0\0\0\1preview")
        await socket.send_json({"type": "execution_error", "data": {"prompt_id": "somebody else's"}})
        for kind, data in self.messages:
            await socket.send_json({"type": kind, "data": {"prompt_id": "p1", **data}})
        status, answer = self.answer
        return web.json_response(answer, status=status)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        picture = form["image"]
        assert isinstance(picture, web.FileField)
        self.heard["upload"] = (form["subfolder"], picture.filename, form["overwrite"], picture.file.read())
        return web.json_response({"name": "stored.png", "subfolder": "sub", "type": "input"})

    async def note(self, request: web.Request) -> web.Response:
        self.heard[request.path] = await request.json()
        return web.Response()

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response({"p1": {"outputs": self.shown, "status": {"messages": []}}})

    async def view(self, request: web.Request) -> web.Response:
        self.heard["view"] = dict(request.query)
        return web.Response(body=self.picture)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    loop = asyncio.new_event_loop()
    application = web.Application()
    application.add_routes(peer.routes())
    runner = web.AppRunner(application, shutdown_timeout=1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield peer
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def run(peer: Peer, folder: Path, lines: list[str] | None = None, **more: Any) -> ServerResult:
    keep = (lines if lines is not None else []).append
    arguments: dict[str, Any] = {"sets": [], "input": None, "progress": keep, "output": folder / "out", **more}
    return run_on_server(arguments.pop("document", PROMPT), peer.url + "/", **arguments)


def test_a_run(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"mine")
    step = {"node": "2", "value": 1, "max": 4}
    peer.messages[1:1] = [
        ("progress", step),
        ("progress_state", {"nodes": {"2": {**step, "state": "running"}, "1": {**step, "state": "finished"}}}),
    ]
    lines: list[str] = []
    result = run(peer, tmp_path, lines, input=tmp_path, sets=["Out.filename_prefix=y"])
    assert result.images == [tmp_path / "out" / "day" / "x_00001_.png"]
    assert result.images[0].read_bytes() == b"picture"
    assert result.reports == {"2": {"seed": 42}}
    assert lines == ["uploaded sub/a.png", "node 2 (Out)", "node 2 (Out): step 1/4"]
    assert peer.heard["upload"] == ("sub", "a.png", "true", b"mine")
    assert peer.heard["view"] == SAVED
    queued = peer.heard["prompt"]["prompt"]
    assert queued["1"]["inputs"] == {"image": "sub/stored.png"}
    assert queued["2"]["inputs"] == {"images": ["1", 0], "filename_prefix": "y"}
    assert "extra_data" not in peer.heard["prompt"]


def test_the_editors_workflow_goes_along(peer: Peer, tmp_path: Path) -> None:
    document = {"nodes": [{"id": 1, "type": "PrimitiveInt", "widgets_values": [5, "fixed"]}], "links": []}
    run(peer, tmp_path, document=document)
    assert peer.heard["prompt"]["prompt"]["1"]["inputs"] == {"value": 5}
    assert peer.heard["prompt"]["extra_data"] == {"extra_pnginfo": {"workflow": document}}


def test_an_earlier_picture_is_kept(peer: Peer, tmp_path: Path) -> None:
    first = run(peer, tmp_path).images
    assert run(peer, tmp_path).images == first
    peer.picture = b"another one of that name"
    (second,) = run(peer, tmp_path).images
    assert (first[0].read_bytes(), second.read_bytes()) == (b"picture", b"another one of that name")


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "execution_error",
            {"node_id": "2", "node_type": "SaveImage", "exception_type": "OSError", "exception_message": "full\n"},
            r"Node 2 \(Out\), class 'SaveImage', failed on the server: OSError: full$",
        ),
        ("execution_interrupted", {"node_id": "2"}, r"stopped on the server, in node 2 \(Out\)"),
    ],
)
def test_a_run_that_fails(peer: Peer, tmp_path: Path, kind: str, data: dict[str, Any], words: str) -> None:
    peer.messages = [(kind, data)]
    with pytest.raises(WorkflowError, match=words):
        run(peer, tmp_path)


@pytest.mark.parametrize("status", [400, 200], ids=["refused", "half-refused"])
def test_a_refused_workflow(peer: Peer, tmp_path: Path, status: int) -> None:
    reason = {"message": "Value not in list", "details": "image: 'a.png'", "extra_info": {"input_name": "image"}}
    peer.answer = (status, {"prompt_id": "p1", "node_errors": {"1": {"errors": [reason]}}})
    with pytest.raises(WorkflowError, match=r"node 1 \(LoadImage\), input 'image': Value not in list: image: 'a.png'"):
        run(peer, tmp_path)
    assert ("/interrupt" in peer.heard) == (status == 200)


def test_ctrl_c_stops_the_server_too(peer: Peer, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(peer, tmp_path, progress=interrupt)
    assert (peer.heard["/queue"], peer.heard["/interrupt"]) == ({"delete": ["p1"]}, {"prompt_id": "p1"})


@pytest.mark.parametrize("entry", [{"filename": "../x.png"}, {"subfolder": "/etc"}, {"subfolder": "link"}])
def test_the_servers_names_stay_in_the_folder(peer: Peer, tmp_path: Path, entry: dict[str, str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    peer.shown = {"2": {"images": [{**SAVED, **entry}]}}
    with pytest.raises(AITKError, match="is refused"):
        run(peer, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.png")] == []


@pytest.mark.parametrize(
    ("url", "words"), [("http://127.0.0.1:1", "cannot be reached"), ("localhost:8188", "is not an address")]
)
def test_no_server(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        run_on_server(PROMPT, url, sets=[], output=tmp_path, input=None, progress=print)


def test_something_else_answers(peer: Peer, tmp_path: Path) -> None:
    peer.answer = (500, {})
    with pytest.raises(WorkflowError, match="answers /prompt with HTTP 500"):
        run(peer, tmp_path)
    peer.url += "/other"
    with pytest.raises(WorkflowError, match="answers /object_info with HTTP 404"):
        run(peer, tmp_path)
    assert json.dumps(peer.heard["prompt"]["prompt"]) == json.dumps(PROMPT)


ODD = [None, 5, "x", [1], {"a": [1]}, {"2": 5}, {"2": {"images": 5, "aitk_report": ["{"]}}, {"2": {"images": [5, {}]}}]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("where", ["outputs", "progress", "progress_state", "node_errors", "history", "object_info"])
def test_answers_of_any_shape_end_in_one_short_error_or_none(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, odd: Any
) -> None:
    end = ("executing", {"node": None})
    if where == "outputs":
        peer.shown = odd
    elif where == "node_errors":
        peer.answer = (200, {"prompt_id": "p1", "node_errors": {"1": odd, "2": {"errors": odd}}})
    elif where in ("history", "object_info"):

        async def answer(request: web.Request) -> web.Response:
            return web.json_response({"p1": odd} if where == "history" else odd)

        monkeypatch.setattr(peer, where, answer)
        monkeypatch.setattr("comfyui_aitk.headless.server._HISTORY_TRIES", 1)
    else:
        data = {"node": "2", "value": odd, "max": odd, "nodes": odd}
        peer.messages = [(where, data), end]
    try:
        run(peer, tmp_path)
    except AITKError as error:
        assert 10 < len(str(error)) < 1000
        assert str(tmp_path) not in str(error)


def test_a_server_s_words_are_cut(peer: Peer, tmp_path: Path) -> None:
    peer.messages = [("execution_error", {"node_id": "x" * 10**5, "exception_message": "y" * 10**5})]
    with pytest.raises(WorkflowError, match="failed on the server") as caught:
        run(peer, tmp_path)
    assert len(str(caught.value)) < 1500
    reasons = [{"message": "m" * 10**4, "details": "d"}] * 500
    peer.answer = (400, {"node_errors": {"1": {"errors": reasons}}})
    with pytest.raises(WorkflowError, match="and 480 more") as caught:
        run(peer, tmp_path)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    "url",
    ["", "http://", "http://[::1", "http://a:99999", "http://a b", "http://ü", "http://a\n", "ftp://a", "x" * 10**5],
)
def test_what_is_no_address_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(WorkflowError, match="is not an address") as caught:
        run_on_server(PROMPT, url, sets=[], output=tmp_path, input=None, progress=print)
    assert len(str(caught.value)) < 300


def test_a_password_in_the_address_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"http://127\.0\.0\.1:1 cannot be reached") as caught:
        run_on_server(PROMPT, "http://me:secret@127.0.0.1:1", sets=[], output=tmp_path, input=None, progress=print)
    assert "secret" not in str(caught.value)
