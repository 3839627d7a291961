"""The API format of a workflow, and how its nodes are named in messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..pipelines.errors import WorkflowError

Prompt = dict[str, dict[str, Any]]
"""Node id -> ``{"class_type": ..., "inputs": {name: value or [node id, output index]}, "_meta": {"title": ...}}``."""

Definitions = Mapping[str, Mapping[str, Any]]
"""Class id -> what the class takes and returns, in the shape of ComfyUI's ``GET /object_info``."""

_LISTED = 60


def node_title(node: Mapping[str, Any]) -> str:
    """What a user calls the node: its title where it has one, else its class id."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) and title else node["class_type"]


def node_label(node_id: str, node: Mapping[str, Any]) -> str:
    """The node in a message: its id, and its title or class."""
    return f"{node_id} ({node_title(node)})"


def unknown_classes(found: Sequence[str], known: Collection[str]) -> WorkflowError:
    """The error for nodes that a run cannot make.

    Args:
        found: a description of each of them.
        known: ids of the classes that the run has.
    """
    offered = ", ".join(sorted(known)) if len(known) <= _LISTED else f"{len(known)} classes"
    return WorkflowError(
        "Unknown node class: " + "; ".join(found) + f". This run offers: {offered}. Remove or mute the nodes, or "
        "install their pack in a ComfyUI and run the workflow there with --server URL."
    )


def refuse_unknown(prompt: Mapping[str, Mapping[str, Any]], known: Collection[str]) -> None:
    """Raises :func:`unknown_classes` if a node of ``prompt`` has a class that is not among ``known``."""
    found = [
        f"{node['class_type']!r} (node {node_label(node_id, node)})"
        for node_id, node in prompt.items()
        if node["class_type"] not in known
    ]
    if found:
        raise unknown_classes(found, known)
