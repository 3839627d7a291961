"""Flattens the editor's workflow format into API format, as ComfyUI's page does when it queues a prompt.

Reroutes, notes and primitives are the page's own nodes and vanish; muted and bypassed nodes vanish; subgraphs are
replaced by what is in them, the node ``7`` of the subgraph ``12`` becoming ``12:7``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..pipelines.errors import WorkflowError
from ..pipelines.words import shown
from .level import Level, Workflow
from .prompt import SHOWN_PROBLEMS, Definitions, Prompt, unknown_classes
from .saved_graph import (
    UNPACK,
    Graph,
    Node,
    is_off,
    label,
    pack_of,
    shown_id,
    slots,
    subgraph_label,
    subgraphs_in,
    title,
)

_GROUP = ("workflow>", "workflow/")
_DEEPEST = 50  # subgraphs in each other
_MOST_PARTS = 200_000  # nodes, links, inputs and outputs of a workflow, those of a subgraph as often as it is used


def flatten(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    """Returns the editor's workflow in API format; see :func:`.workflow.to_prompt`."""
    try:
        return _flattened(document, definitions)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        # The file is somebody else's: whatever is missing or misshapen in it ends up here.
        what = f"it has no {shown(error.args[0])}" if isinstance(error, KeyError) else type(error).__name__
        raise WorkflowError(f"The workflow file is damaged ({what}). Open it in ComfyUI and save it again.") from error


def _flattened(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    subgraphs = {str(subgraph["id"]): subgraph for subgraph in subgraphs_in(document)}
    _refuse_multiplied(document, subgraphs)
    levels = list(Level("", document, Workflow(subgraphs, definitions)).walk())
    running = {level.prefix + node_id: (level, node_id, node) for level in levels for node_id, node in level.running()}
    known = {name: found for name, found in running.items() if found[2]["type"] in definitions}
    prompt = {name: level.prompt_node(node_id) for name, (level, node_id, _) in known.items()}
    needed = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    # a page-only node of another pack has no class; one that takes nothing and that nothing needs is left out, as there
    matters = needed if prompt else set(running)
    unknown = {name: node for name, (_, _, node) in running.items() if name not in known}
    _refuse_unknown({name: n for name, n in unknown.items() if name in matters or _does_something(n)}, definitions)
    return prompt


def _does_something(node: Node) -> bool:
    """True for a node of no known class that may matter though nothing needs it: it takes something, or is a group."""
    return str(node["type"]).startswith(_GROUP) or any(slot.get("link") is not None for slot in slots(node, "inputs"))


def _refuse_unknown(nodes: Mapping[str, Node], definitions: Definitions) -> None:
    for name, node in nodes.items():
        if str(node["type"]).startswith(_GROUP):
            raise WorkflowError(
                f"Node {label(name, node)} is the group node {shown(node['type'][9:])}, an old kind of subgraph that "
                f"only the editor can take apart. {UNPACK}"
            )
    found = [
        f"{shown(str(node['type']))} (node {shown_id(name)}, {shown(title(node))}{pack_of(node)})"
        for name, node in list(nodes.items())[:SHOWN_PROBLEMS]
    ]
    if found:
        raise unknown_classes(found, len(nodes), definitions)


def _refuse_multiplied(document: Graph, subgraphs: Mapping[str, Graph]) -> None:
    """Refuses a small file whose subgraphs make a huge workflow, before it is made."""
    sizes: dict[str, int] = {}

    def size(graph: Graph, around: tuple[str, ...]) -> int:
        total = len(graph.get("links") or ())
        for node in graph.get("nodes") or ():
            total += 1 + len(slots(node, "inputs")) + len(slots(node, "outputs"))
            kind = str(node.get("type"))
            if kind not in subgraphs or is_off(node):
                continue
            if kind in around:
                raise WorkflowError(
                    f"Subgraph {subgraph_label(subgraphs[kind])} contains itself. Save the workflow again."
                )
            if len(around) >= _DEEPEST:
                raise WorkflowError(f"Its subgraphs lie more than {_DEEPEST} deep in each other. {UNPACK}")
            if kind not in sizes:
                sizes[kind] = size(subgraphs[kind], (*around, kind))
            total += sizes[kind]
        return total

    if size(document, ()) > _MOST_PARTS:
        raise WorkflowError(
            f"It has more than {_MOST_PARTS:,} nodes, links, inputs and outputs; those of a subgraph multiply with its "
            "uses. Use fewer."
        )
