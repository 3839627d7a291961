"""Runs a workflow on a ComfyUI server through its HTTP API, and brings the pictures back."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from ..nodes.save_image import REPORT_KEY
from ..pipelines.errors import AITKError, FileError, WorkflowError
from ..pipelines.pictures.saving import reason as words_of
from ..pipelines.pictures.saving import save_new
from ..pipelines.weights.untrusted_names import check_name, resolve_name
from ..pipelines.words import cut, shown
from .connection import Connection, why
from .inputs import declared_inputs
from .pictures import input_name
from .prompt import Definitions, Prompt, and_more, node_label
from .workflow import apply_sets, fill_in_names, is_editor_format, to_prompt

_QUIET_SECONDS = 10.0
_HISTORY_TRIES = 50
_LONGEST_REASON = 500  # characters of the server's words
_MOST_ALIKE = 10_000  # pictures of one name


@dataclass(frozen=True)
class ServerResult:
    """What a run on a server made."""

    images: list[Path]
    """The pictures, where they were saved on this machine."""
    reports: dict[str, Any]
    """The reports of this pack's samplers, by node id."""
    seconds: float
    """From queueing to the end, waiting in the server's queue included."""


def run_on_server(
    document: Mapping[str, Any],
    url: str,
    *,
    sets: Sequence[str],
    output: Path,
    input: Path | None,
    progress: Callable[[str], None],
) -> ServerResult:
    """Queues a workflow, waits for its end, and downloads the pictures it saved.

    Ctrl-C stops the run on the server too.

    Args:
        document: a workflow of either format.
        url: the server, e.g. ``http://127.0.0.1:8188``.
        sets: see :func:`.workflow.apply_sets`.
        output: folder for the pictures, which keep the subfolders they have on the server.
        input: folder of pictures that the workflow loads; those that are there are uploaded first.
        progress: gets one line at a time.

    Raises:
        WorkflowError: the server cannot be reached, refuses the workflow, or a node failed on it.
    """
    connection = Connection(url)
    try:
        return _run(document, connection, sets, output, input, progress)
    except AITKError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        # The answers are another program's: whatever is misshapen in them ends up here.
        raise WorkflowError(
            f"What runs at {connection.name} answers unlike ComfyUI ({type(error).__name__}). Check the address."
        ) from error


def _run(
    document: Mapping[str, Any],
    connection: Connection,
    sets: Sequence[str],
    output: Path,
    input: Path | None,
    progress: Callable[[str], None],
) -> ServerResult:
    definitions = connection.get_json("/object_info")
    prompt = apply_sets(to_prompt(document, definitions), sets, definitions)
    prompt = fill_in_names(prompt, document)
    if input is not None:
        _upload_pictures(connection, prompt, definitions, input, progress)
    start = time.monotonic()
    client_id = uuid4().hex
    with contextlib.closing(connection.websocket(client_id)) as socket:
        prompt_id = _queue(connection, prompt, client_id, document if is_editor_format(document) else None)
        try:
            _wait(connection, socket, prompt_id, _Watch(prompt, progress))
        except KeyboardInterrupt:
            _stop(connection, prompt_id)
            raise
    outputs = _history(connection, prompt_id).get("outputs") or {}
    seconds = time.monotonic() - start
    return ServerResult(_download(connection, outputs, output), reports_in(outputs), seconds)


@dataclass
class _Watch:
    """Follows one prompt's messages, and says what is new."""

    prompt: Prompt
    progress: Callable[[str], None]
    _shown: dict[str, tuple[float, float]] = field(default_factory=dict)

    def handle(self, kind: str, data: Mapping[str, Any]) -> bool:
        """Takes one message; returns True at the run's end.

        Raises:
            WorkflowError: a node failed, or somebody stopped the run.
        """
        if kind == "execution_error":
            raise WorkflowError(
                f"Node {self._label(data)}, class {shown(data.get('node_type'))}, failed on the server: "
                f"{cut(str(data.get('exception_type', 'error')))}: "
                f"{cut(str(data.get('exception_message', '')).strip(), _LONGEST_REASON)}"
            )
        if kind == "execution_interrupted":
            raise WorkflowError(f"The run was stopped on the server, in node {self._label(data)}.")
        if kind == "execution_cached" and data.get("nodes"):
            self.progress(f"nodes taken over from an earlier run: {len(data['nodes'])}")
        elif kind == "executing" and data.get("node") is not None:
            self.progress(f"node {self._label(data)}")
        elif kind == "progress":
            self._step(data, data)
        elif kind == "progress_state":
            for node_id, state in (data.get("nodes") or {}).items():
                if state.get("state") == "running":
                    self._step({"node": node_id}, state)
        return kind == "execution_success" or (kind == "executing" and data.get("node") is None)

    def _step(self, node: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Servers report a step in two kinds of messages, or in one of them: each step is shown once."""
        label = self._label(node)
        now = (float(state.get("value") or 0), float(state.get("max") or 0))
        if now[0] > 0 and now[1] > 1 and self._shown.get(label) != now:
            self._shown[label] = now
            self.progress(f"node {label}: step {now[0]:g}/{now[1]:g}")

    def _label(self, data: Mapping[str, Any]) -> str:
        node_id = str(data.get("node_id") or data.get("node"))
        return node_label(node_id, self.prompt[node_id]) if node_id in self.prompt else cut(node_id)


def _upload_pictures(
    connection: Connection,
    prompt: Prompt,
    definitions: Definitions,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """Uploads what lies in ``folder``, and puts the server's names for it into ``prompt``."""
    sent: dict[str, str] = {}
    for node in prompt.values():
        for name, spec in declared_inputs(definitions[node["class_type"]]).items():
            value = node["inputs"].get(name)
            if not spec[1].get("image_upload") or not isinstance(value, str):
                continue
            if value not in sent:
                try:
                    picture = resolve_name(input_name(value), [folder], "image")
                except FileError:
                    continue  # it may lie on the server; the server says so if it does not
                relative = check_name(input_name(value), "image")
                subfolder = "" if relative.parent.as_posix() == "." else relative.parent.as_posix()
                sent[value] = connection.upload_image(relative.name, picture.read_bytes(), subfolder)
                progress(f"uploaded {relative.as_posix()}")
            node["inputs"][name] = sent[value]


def _queue(connection: Connection, prompt: Prompt, client_id: str, workflow: Mapping[str, Any] | None) -> str:
    body: dict[str, Any] = {"prompt": prompt, "client_id": client_id}
    if workflow is not None:
        body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
    status, answer = connection.post_json("/prompt", body)
    if status != 200 or "prompt_id" not in answer:
        raise WorkflowError(_refusal(prompt, answer))
    if answer.get("node_errors"):
        # Some output nodes are fine and are queued already: half a result would look like a whole one.
        _stop(connection, answer["prompt_id"])
        raise WorkflowError(_refusal(prompt, answer))
    return answer["prompt_id"]


def _refusal(prompt: Prompt, answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    summary = error if isinstance(error, dict) else {"message": error or "some of its nodes would not run"}
    details = f" ({cut(str(summary['details']), _LONGEST_REASON)})" if summary.get("details") else ""
    problems = []
    for node_id, entry in (answer.get("node_errors") or {}).items():
        label = node_label(node_id, prompt[node_id]) if node_id in prompt else cut(node_id)
        for reason in entry.get("errors") or ():
            name = (reason.get("extra_info") or {}).get("input_name")
            where = f"node {label}" + (f", input {shown(name)}" if name else "")
            words = f"{reason.get('message')}: {reason.get('details')}"
            problems.append(f"- {where}: {cut(words, _LONGEST_REASON)}")
    summed_up = f"The server refuses the workflow: {cut(str(summary.get('message')), _LONGEST_REASON)}{details}"
    return "\n".join([summed_up, *and_more(problems, len(problems))])


def _wait(connection: Connection, socket: Any, prompt_id: str, watch: _Watch) -> None:
    import websocket

    socket.settimeout(_QUIET_SECONDS)
    while True:
        try:
            frame = socket.recv()
        except websocket.WebSocketTimeoutException:
            # Nothing for a while is normal while a model loads; but the last message may also have got lost.
            if _ended(connection, prompt_id, watch):
                return
            continue
        except (websocket.WebSocketException, OSError) as error:
            raise WorkflowError(
                f"The connection to {connection.name} broke while the workflow was running: {why(error)}. "
                "See the server's log; the run may still be going on there."
            ) from error
        if not isinstance(frame, str) or not frame:
            continue  # previews come as bytes
        message = json.loads(frame)
        data = message.get("data") or {}
        if data.get("prompt_id") == prompt_id and watch.handle(message.get("type", ""), data):
            return


def _ended(connection: Connection, prompt_id: str, watch: _Watch) -> bool:
    entry = connection.get_json(f"/history/{prompt_id}").get(prompt_id)
    for kind, data in ((entry or {}).get("status") or {}).get("messages") or ():
        if kind in ("execution_error", "execution_interrupted"):
            watch.handle(kind, data)
    return entry is not None


def _stop(connection: Connection, prompt_id: str) -> None:
    """Takes the prompt out of the queue, or stops it; a server that is gone needs neither."""
    with contextlib.suppress(WorkflowError):
        connection.post_json("/queue", {"delete": [prompt_id]})
        connection.post_json("/interrupt", {"prompt_id": prompt_id})


def _history(connection: Connection, prompt_id: str) -> dict[str, Any]:
    for _ in range(_HISTORY_TRIES):  # the server writes the entry just after its last message
        entry = connection.get_json(f"/history/{prompt_id}").get(prompt_id)
        if entry is not None:
            return entry
        time.sleep(0.1)
    raise WorkflowError(
        f"The workflow ended, but {connection.name} has no record of its pictures. Look into the server's output "
        "folder."
    )


def _download(connection: Connection, outputs: Mapping[str, Any], folder: Path) -> list[Path]:
    saved: list[Path] = []
    for found in outputs.values():
        for entries in found.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and entry.get("type") == "output" and entry.get("filename"):
                    saved.append(_save(connection, entry, folder))
    return saved


def _save(connection: Connection, entry: Mapping[str, Any], folder: Path) -> Path:
    subfolder = str(entry.get("subfolder") or "")
    # The names come from another machine: they must not lead out of the folder.
    relative = check_name("/".join(filter(None, (subfolder, str(entry["filename"])))), "picture of the server")
    data = connection.get_bytes("/view", {"filename": str(entry["filename"]), "subfolder": subfolder, "type": "output"})
    path = folder / relative
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise FileError(
            f"Picture {relative.as_posix()!r} of the server is refused: its folder is a link that leads out of the "
            "output folder. Remove the link."
        )
    names = [relative.name, *(f"{relative.stem}({number}){relative.suffix}" for number in range(1, _MOST_ALIKE))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            there = path.with_name(name)
            if not there.exists():
                break
            if there.read_bytes() == data:
                # the same picture, brought here by an earlier run
                return there
    except OSError as error:
        raise FileError(f"Picture {cut(relative.as_posix())!r} cannot be saved: {words_of(error)}.") from error

    def write(file: BinaryIO) -> None:
        file.write(data)

    return save_new(path.parent, names, write)


def reports_in(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The reports of the samplers that ran, by node id: what they show beside their outputs."""
    reports: dict[str, Any] = {}
    for node_id, found in outputs.items():
        for text in found.get(REPORT_KEY) or ():
            reports[node_id] = json.loads(text)
    return reports
