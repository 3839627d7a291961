"""The API format of a workflow, and how its nodes are named in messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

from ..pipelines.errors import WorkflowError
from ..pipelines.words import cut, shown

Prompt = dict[str, dict[str, Any]]
"""Node id -> ``{"class_type": ..., "inputs": {name: value or [node id, output index]}, "_meta": {"title": ...}}``."""

Definitions = Mapping[str, Mapping[str, Any]]
"""Class id -> what the class takes and returns, in the shape of ComfyUI's ``GET /object_info``."""

SHOWN_PROBLEMS = 20  # in one message
_LISTED = 60
_MOST = 60  # characters of an id or a title in a message


def node_title(node: Mapping[str, Any]) -> str:
    """What a user calls the node: its title where it has one, else its class id."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) and title else node["class_type"]


def node_label(node_id: str, node: Mapping[str, Any]) -> str:
    """The node in a message: its id, and its title or class."""
    return f"{cut(node_id, _MOST)} ({cut(node_title(node), _MOST)})"


def and_more(found: Sequence[str], count: int) -> list[str]:
    """The first of what was found, and how many more there are."""
    few = list(found[:SHOWN_PROBLEMS])
    return few if count <= len(few) else [*few, f"and {count - len(few)} more"]


def unknown_classes(found: Sequence[str], count: int, known: Collection[str]) -> WorkflowError:
    """The error for nodes that a run cannot make.

    Args:
        found: a description of each of the first of them.
        count: how many there are.
        known: ids of the classes that the run has.
    """
    offered = ", ".join(sorted(known)) if len(known) <= _LISTED else f"{len(known)} classes"
    return WorkflowError(
        f"Unknown node class: {'; '.join(and_more(found, count))}. This run offers: {offered}. Remove or mute the "
        "nodes, or install their pack in a ComfyUI and run the workflow there with --server URL."
    )


def refuse_unknown(prompt: Mapping[str, Mapping[str, Any]], known: Collection[str]) -> None:
    """Raises :func:`unknown_classes` if a node of ``prompt`` has a class that is not among ``known``."""
    unknown = {node_id: node for node_id, node in prompt.items() if node["class_type"] not in known}
    if unknown:
        found = [
            f"{shown(node['class_type'])} (node {node_label(node_id, node)})"
            for node_id, node in islice(unknown.items(), SHOWN_PROBLEMS)
        ]
        raise unknown_classes(found, len(unknown), known)
