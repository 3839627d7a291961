"""One picture of the engine's: a request, its frames, its file. Who stops waiting tells the engine to stop too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import OracleError
from ..words import cut, printable, shown
from .connection import Refused
from .protocol import CANCEL, FRAMES, GENERATE, OUTPUTS, STATES, Frame, Misunderstanding

if TYPE_CHECKING:
    from ..observer import Observer
    from .connection import Connection

_LARGEST_PICTURE = 1 << 28  # bytes
_WORDS = 300


@dataclass(eq=False)
class Drawing:
    """What the engine says of a request, as far as it has come.

    Attributes:
        id: the request's; empty before it is known.
        start, result: the headers of these frames.
        strange: what of it was not understood, a sentence each.
        ended: whether the engine is through with it.
        picture: the file's bytes.
    """

    id: str = ""
    start: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    ended: bool = False
    picture: bytes = b""


def draw(engine: Connection, body: Mapping[str, Any], observer: Observer, where: str, seconds: float) -> Drawing:
    """Has the engine draw a picture and fetches it.

    Args:
        engine: where.
        body: of the request.
        observer: told how far the engine is, asked for interruption.
        where: names the picture there.
        seconds: without a sign of life before the wait ends.

    Raises:
        OracleError: there is no picture; or whatever the observer raises, after the engine was told to stop.
    """
    drawing = Drawing()
    try:
        for item in engine.stream(GENERATE, body, seconds):
            if isinstance(item, str):
                drawing.id = item
            else:
                _take(drawing, item, observer, where)
    except BaseException:
        if not drawing.ended:
            _stop(engine, drawing.id, observer)
        raise
    if not drawing.result:
        raise Misunderstanding("The engine's stream ends without a picture and without an error.")
    drawing.picture = engine.get_file(OUTPUTS + _relative_path(drawing), _LARGEST_PICTURE)
    return drawing


def _take(drawing: Drawing, frame: Frame, observer: Observer, where: str) -> None:
    drawing.id = drawing.id or frame.text("request_id")
    if frame.type == "start":
        drawing.start = frame.header
    elif frame.type == "status":
        said = printable(cut(frame.text("status", "message")))
        observer.progress(f"the engine, {where}: {said or 'at work'}")
    elif frame.type == "progress":
        observer.progress(f"the engine, {where}: {_steps(frame)}")
    elif frame.type == "result":
        drawing.result = frame.header
    elif frame.type == "error":
        # its traceback is for its own log
        drawing.ended = True
        words = shown(printable(frame.text("message")), _WORDS) if frame.text("message") else "no reason given"
        raise Refused(f"The engine {'was told to stop' if frame.header.get('cancelled') else 'failed'}: {words}.")
    elif frame.type == "end":
        drawing.ended = True
    if frame.type not in FRAMES:
        said = f"The engine sends frames of type {shown(printable(frame.type))}, which {STATES} do not have."
        if said not in drawing.strange:
            drawing.strange.append(said)


def _steps(frame: Frame) -> str:
    step, total = frame.header.get("step"), frame.header.get("total")
    return f"{shown(step)} of {shown(total)} steps" if isinstance(step, int) and isinstance(total, int) else "sampling"


def _stop(engine: Connection, request: str, observer: Observer) -> None:
    """Ends the drawing there; where the engine never told an id, the closed connection has to be enough."""
    if not request:
        return
    try:
        engine.cancel(CANCEL + quote(request, safe=""))
    except OracleError as error:
        observer.stage(f"the engine could not be told to stop: {error}")


def _relative_path(drawing: Drawing) -> str:
    """The picture's path below the engine's output folder."""
    given = drawing.result.get("relpath")
    if given is None:
        # the first state told its own path alone; a request's files lie in a folder of its id
        path = drawing.result.get("path")
        name = PureWindowsPath(path).name if isinstance(path, str) else ""
        drawing.strange.append(f"The engine's result has no relpath, as in the first of {STATES}.")
        given = f"{drawing.id}/{name}" if drawing.id and name else None
    if not isinstance(given, str):
        raise Misunderstanding("The engine does not say where its picture is.")
    path = PurePosixPath(given.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Misunderstanding(f"The engine's picture lies at {shown(printable(given))}, outside of its own folder.")
    return str(path)
