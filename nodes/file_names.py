"""File names that a workflow asks for: what the editor fills in, and what is refused before a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from ..pipelines.errors import FileError
from ..pipelines.pictures.saving import LONGEST_NAME
from ..pipelines.weights.untrusted_names import check_name
from ..pipelines.words import shown

_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_DATE_MARK = "date:"
_FORBIDDEN = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')  # in a file's name, on Windows
_LONGEST = 4000  # characters, with placeholders
_ENDING = len("_00001_.webp")
_SEARCH_NAME = "Node name for S&R"


def fill_in(text: str, prompt: Mapping[str, Any] | None, workflow: object = None, now: datetime | None = None) -> str:
    """``%date:yyyy-MM-dd%`` and ``%Node.widget%`` filled in, as ComfyUI's page does it for its own save nodes.

    A node is found by its "Node name for S&R", which is its class where nobody changed it, else by its title. What is
    not found stays as it is.

    Args:
        text: e.g. a file name prefix.
        prompt: the graph in API format.
        workflow: in the editor's format, where there is one.
        now: for the date.
    """
    time = now or datetime.now()
    nodes = _Nodes(prompt or {}, workflow)

    def value(found: re.Match[str]) -> str:
        inner = found[1]
        if inner.startswith(_DATE_MARK):
            return _FORBIDDEN.sub("_", _DATE.sub(lambda part: _date(part[0], time), inner.removeprefix(_DATE_MARK)))
        name, dot, widget = inner.partition(".")
        if not dot or "." in widget:
            return found[0]
        inputs = nodes.called(name).get("inputs")
        given = inputs.get(widget) if isinstance(inputs, dict) else None
        # a list is a wire
        if given is None or isinstance(given, list | dict):
            return found[0]
        return _FORBIDDEN.sub("_", _as_javascript(given))

    return _PLACEHOLDER.sub(value, text)


def prefix_of(typed: object, prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> str:
    """A save node's prefix with everything filled in that the page would.

    Args:
        typed: what arrived as filename_prefix.
        prompt, extra: the node's hidden inputs.

    Raises:
        FileError: no file can be called so.
    """
    if refused := why_unusable(typed):
        raise FileError(refused)
    filled = fill_in(str(typed), prompt, (extra or {}).get("workflow"))
    if refused := why_unusable(filled):
        raise FileError(refused)
    return filled


def why_unusable(prefix: object) -> str:
    """Why no file can be called so; empty where one can."""
    try:
        name = check_name(prefix, "filename_prefix")  # pyright: ignore[reportArgumentType]
    except FileError as error:
        return str(error)
    if len(str(name)) > _LONGEST:
        return f"filename_prefix {shown(str(name), 40)} is too long: choose at most {_LONGEST:,} characters."
    if "%" in str(name):
        # placeholders become longer or shorter
        return ""
    *folders, last = (len(part.encode("utf-8", "replace")) for part in name.parts)
    if max(folders, default=0) > LONGEST_NAME:
        return f"The folder of filename_prefix {shown(str(name), 40)} cannot be made: File name too long."
    if last + _ENDING > LONGEST_NAME:
        return f"filename_prefix {shown(str(name), 40)} is too long: a file's name has at most {LONGEST_NAME} bytes."
    return ""


def numbered(stem: str, first: int, extension: str) -> Iterator[str]:
    """The names of a picture: its number, and the next ones where others took that."""
    return (f"{stem}_{number:05}_.{extension}" for number in range(first, first + _MOST_TRIES))


_MOST_TRIES = 100_000


class _Nodes:
    """The graph's nodes by what people call them; of several with one name the first counts."""

    def __init__(self, prompt: Mapping[str, Any], workflow: object) -> None:
        self._prompt = prompt
        self._workflow = workflow

    def called(self, name: str) -> Mapping[str, Any]:
        """The node of that name, or an empty one."""
        return self._searched.get(name) or self._titled.get(name) or {}

    @cached_property
    def _searched(self) -> dict[str, Mapping[str, Any]]:
        own = _search_names(self._workflow)
        return self._by_name(lambda node_id, node: own.get(node_id, node.get("class_type")))

    @cached_property
    def _titled(self) -> dict[str, Mapping[str, Any]]:
        return self._by_name(lambda node_id, node: _title(node))

    def _by_name(self, name_of: Callable[[str, Mapping[str, Any]], object]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for node_id, node in self._prompt.items():
            if isinstance(node, dict):
                name = name_of(str(node_id), node)
                if isinstance(name, str):
                    found.setdefault(name, node)
        return found


def _title(node: Mapping[str, Any]) -> object:
    meta = node.get("_meta")
    return meta.get("title") if isinstance(meta, dict) else None


def _search_names(workflow: object) -> dict[str, str]:
    """Node id -> what it is called by; of the workflow itself, not of what is in its subgraphs."""
    nodes = workflow.get("nodes") if isinstance(workflow, dict) else None
    found = {}
    for node in nodes if isinstance(nodes, list) else ():
        properties = node.get("properties") if isinstance(node, dict) else None
        if isinstance(properties, dict) and isinstance(properties.get(_SEARCH_NAME), str):
            found[str(node.get("id"))] = properties[_SEARCH_NAME]
    return found


def _date(letters: str, now: datetime) -> str:
    if letters[0] == "y":
        # the page leaves three as they are
        return {2: f"{now.year % 100:02}", 4: f"{now.year}"}.get(len(letters), letters)
    number = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}[letters[0]]
    return str(number).zfill(len(letters))


def _as_javascript(value: object) -> str:
    """A number or a switch as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
