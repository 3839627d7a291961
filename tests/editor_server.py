"""What ComfyUI's server answers its page, for the published page and our nodes: enough to build graphs, none to run."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from aiohttp import web
from comfyui_aitk.headless.core_nodes import CORE_CLASSES, CORE_NAMES
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.nodes.editor import ANSWERS
from comfyui_aitk.nodes.host.comfyui import add_routes

WEB = Path(__file__).resolve().parents[1] / "web"
LOCALES = WEB.parent / "locales"
PACK = "/extensions/comfyui-aitk"
MODULE = "custom_nodes.comfyui-aitk"
NO_JOBS = {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}}
STATS = {
    "system": {"os": "linux", "comfyui_version": "0.28.2", "python_version": "3.11", "pytorch_version": "2.13.0",
               "embedded_python": False, "argv": [], "ram_total": 1, "ram_free": 1},
    "devices": [],
}  # fmt: skip
# path -> what an empty ComfyUI answers
ANSWERED = {
    "/users": {"storage": "server", "migrated": True}, "/system_stats": STATS, "/features": {},
    "/embeddings": [], "/models": [], "/experiment/models": [], "/workflow_templates": {}, "/global_subgraphs": {},
    "/node_replacements": {}, "/userdata": [], "/queue": {"queue_running": [], "queue_pending": []}, "/history": {},
    "/jobs": NO_JOBS, "/prompt": {"exec_info": {"queue_remaining": 0}},
}  # fmt: skip


def find_frontend() -> Path | None:
    """The page's folder: that of ``COMFYUI_FRONTEND``, else that of the installed package."""
    if given := os.environ.get("COMFYUI_FRONTEND"):
        return Path(given)
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return Path(spec.origin).parent / "static" if spec and spec.origin else None


def definitions() -> dict[str, dict[str, Any]]:
    """Our nodes, and those of ComfyUI's that templates have, as its server describes nodes to the page."""
    core = {name: _definition(name, node, CORE_NAMES[name], "nodes") for name, node in CORE_CLASSES.items()}
    named = NODE_DISPLAY_NAME_MAPPINGS
    return core | {name: _definition(name, node, named[name], MODULE) for name, node in NODE_CLASS_MAPPINGS.items()}


def _definition(name: str, node: Any, title: str, module: str) -> dict[str, Any]:
    inputs = node.INPUT_TYPES()
    made = {
        "input": inputs,
        "input_order": {group: list(found) for group, found in inputs.items()},
        "is_input_list": getattr(node, "INPUT_IS_LIST", False),
        "output": node.RETURN_TYPES,
        "output_is_list": getattr(node, "OUTPUT_IS_LIST", [False] * len(node.RETURN_TYPES)),
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "name": name,
        "display_name": title,
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": module,
        "category": node.CATEGORY,
        "output_node": getattr(node, "OUTPUT_NODE", False),
        "search_aliases": getattr(node, "SEARCH_ALIASES", []),
    }
    # these are left out where a node does not say them
    said = {"output_tooltips": "OUTPUT_TOOLTIPS", "deprecated": "DEPRECATED", "experimental": "EXPERIMENTAL"}
    return made | {key: getattr(node, attribute) for key, attribute in said.items() if hasattr(node, attribute)}


def translations() -> dict[str, dict[str, Any]]:
    """Our own, as ComfyUI reads them: main.json, and the other files as sections of it."""
    found: dict[str, dict[str, Any]] = {}
    for folder in (path for path in LOCALES.iterdir() if path.is_dir()):
        read = {name: _json(folder / f"{name}.json") for name in ("main", "nodeDefs", "commands", "settings")}
        found[folder.name] = read.pop("main") | {name: texts for name, texts in read.items() if texts}
    return found


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


@contextmanager
def serving(frontend: Path, settings: dict[str, Any]) -> Iterator[str]:
    """Serves the page to a user with these settings; gives its address."""
    ready, address = Event(), []
    loop = asyncio.new_event_loop()

    async def start() -> None:
        runner = web.AppRunner(_application(frontend, settings), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        ready.set()
        try:
            await stopped.wait()
        finally:
            await runner.cleanup()

    stopped = asyncio.Event()
    thread = Thread(target=lambda: loop.run_until_complete(start()), daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the server does not start"
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def _application(frontend: Path, settings: dict[str, Any]) -> web.Application:
    routes = web.RouteTableDef()
    for path, answer in ANSWERED.items():
        routes.get(path)(_constant(answer))
    routes.get("/object_info")(_constant(definitions()))
    routes.get("/i18n")(_constant(translations()))
    routes.get("/extensions")(_constant(_scripts(frontend)))
    routes.get("/settings")(_constant(settings))
    routes.get("/ws")(_status)
    # a user's settings and drafts are taken, and kept by nobody
    for path in ("/settings", "/settings/{id}", "/userdata/{file}"):
        routes.post(path)(_constant({}))
    add_routes(routes, ANSWERS)
    app = web.Application()
    found = [route for route in routes if isinstance(route, web.RouteDef)]
    # as ComfyUI does: each also stands below /api
    app.add_routes([*found, *(web.RouteDef(one.method, f"/api{one.path}", one.handler, {}) for one in found)])

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(frontend / "index.html")

    app.add_routes([web.get("/", index), web.static(PACK, WEB), web.static("/", frontend)])
    return app


def _scripts(frontend: Path) -> list[str]:
    """What the page loads as extensions: its own, and ours."""
    own = [f"/{path.relative_to(frontend).as_posix()}" for path in sorted(frontend.glob("extensions/**/*.js"))]
    return own + [f"{PACK}/{path.relative_to(WEB).as_posix()}" for path in sorted(WEB.glob("**/*.js"))]


def _constant(answer: Any) -> Any:
    async def answered(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return answered


async def _status(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": request.query.get("clientId", "page")}
    await socket.send_json({"type": "status", "data": status})
    async for _ in socket:
        pass
    return socket
