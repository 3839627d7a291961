"""Reads single things out of a graph as the editor saves it; the file is somebody else's, and messages are bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..pipelines.words import cut, shown

Node = Mapping[str, Any]
Graph = Mapping[str, Any]
"""The workflow itself, or the definition of a subgraph."""

SUBGRAPH_INPUT = "-10"
SUBGRAPH_OUTPUT = "-20"
UNPACK = "Unpack it in the editor, or save the workflow with 'Export (API)'."
_MUTED = 2
_BYPASSED = 4
_MOST = 60  # characters of an id or a title in a message


@dataclass(frozen=True)
class Link:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


def is_muted(node: Node) -> bool:
    return node.get("mode") == _MUTED


def is_bypassed(node: Node) -> bool:
    return node.get("mode") == _BYPASSED


def is_off(node: Node) -> bool:
    """Neither the node itself nor, of a subgraph, what is in it runs."""
    return is_muted(node) or is_bypassed(node)


def slots(node: Node, side: str) -> list[dict[str, Any]]:
    return node.get(side) or []


def title(node: Node) -> str:
    return str(node.get("title") or node["type"])


def shown_id(node_id: str) -> str:
    return cut(node_id, _MOST)


def label(node_id: str, node: Node) -> str:
    """The node in a message."""
    return f"{shown_id(node_id)} ({cut(title(node), _MOST)})"


def pack_of(node: Node) -> str:
    """Whose node it is, as the end of its description in a message."""
    properties = node.get("properties") or {}
    pack = properties.get("cnr_id") or properties.get("aux_id")
    return f", of the pack {shown(pack)}" if pack else ""


def subgraph_label(subgraph: Graph) -> str:
    return shown(subgraph.get("name") or subgraph.get("id"))


def subgraphs_in(graph: Graph) -> Iterator[Graph]:
    """All subgraph definitions; a definition may bring its own along."""
    for subgraph in (graph.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from subgraphs_in(subgraph)


def links_in(graph: Graph) -> Iterator[tuple[Any, Link]]:
    """Links by id. The workflow itself has them as lists, subgraphs and the schema's version 1 as objects."""
    for link in graph.get("links") or ():
        if isinstance(link, dict):
            ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
            yield link["id"], Link(str(ends[0]), ends[1], str(ends[2]), ends[3])
        elif link is not None:
            yield link[0], Link(str(link[1]), link[2], str(link[3]), link[4])


def bypass_input(node: Node, slot: int, wanted: str) -> int | None:
    """The input that a bypassed node passes on through its output ``slot``, or None if none fits."""
    inputs = [str(entry.get("type")) for entry in slots(node, "inputs")]
    if not inputs:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(inputs) else 0
    carried = str(slots(node, "outputs")[slot].get("type"))
    fitting = [index for index, kind in enumerate(inputs) if _connects(kind, carried) and _connects(kind, wanted)]
    if slot in fitting:
        return slot
    if wanted in inputs:
        return inputs.index(wanted)
    return fitting[0] if fitting else None


def _connects(one: str, other: str) -> bool:
    """True if the editor lets these two types be linked."""
    kinds = [{kind.strip().lower() for kind in types.split(",")} for types in (one, other)]
    return any(kinds_of_one & {"*", "", "0"} for kinds_of_one in kinds) or bool(kinds[0] & kinds[1])
