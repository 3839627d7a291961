"""The fields that a node shows for what is in its subgraph, and their values.

Some versions of the editor store such a value at the node that stands for the subgraph, others where the field comes
from: at the first of the inner nodes that are linked to the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from .saved_graph import slots

if TYPE_CHECKING:
    from .saved_graph import Graph, Link, Node


class Inside(Protocol):
    """What is in the subgraph, in the use at hand."""

    graph: Graph
    nodes: dict[str, Node]
    links: dict[Any, Link]

    def widget_values(self, node_id: str) -> Mapping[str, Any]:
        """A node's own fields."""
        ...

    def inner_fields(self, node_id: str) -> SubgraphFields | None:
        """The fields of a node that stands for a subgraph itself; None of any other."""
        ...


class SubgraphFields:
    """Of one use of a subgraph.

    Args:
        inside: what is in it.
        outer: the node that stands for it.
    """

    def __init__(self, inside: Inside, outer: Node) -> None:
        self._inside = inside
        self._outer = outer

    def value(self, name: str) -> Any:
        """The value of the field that the subgraph shows for its input ``name``, or None if it shows none."""
        stored = self._stored.get(name)
        if stored is not None or name not in self._targets:
            return stored
        target, field = self._targets[name]
        inner = self._inside.inner_fields(target)
        return inner.value(field) if inner else self._inside.widget_values(target).get(field)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        """What the node that stands for the subgraph stores, by the subgraph's input names."""
        stored = self._outer.get("widgets_values") or []
        if isinstance(stored, dict):
            return stored
        proxies = (self._outer.get("properties") or {}).get("proxyWidgets") or []
        own = [str(entry[1]) for entry in proxies if str(entry[0]) == "-1"]
        names = own or [slot["name"] for slot in slots(self._inside.graph, "inputs") if slot["name"] in self._targets]
        if own and len(stored) == len(proxies):
            stored = [value for value, entry in zip(stored, proxies, strict=True) if str(entry[0]) == "-1"]
        return dict(zip(names, stored, strict=True)) if len(stored) == len(names) else {}

    @cached_property
    def _targets(self) -> dict[str, tuple[str, str]]:
        """For each input that is linked to fields: the first inner node, and its field."""
        found: dict[str, tuple[str, str]] = {}
        for name, target, field in self._linked_fields():
            found.setdefault(name, (target, field))
        return found

    def _linked_fields(self) -> Iterator[tuple[str, str, str]]:
        fields = {
            (node_id, slot["link"]): str(slot["widget"]["name"])
            for node_id, node in self._inside.nodes.items()
            for slot in slots(node, "inputs")
            if slot.get("widget") and slot.get("link") is not None
        }
        for entry in slots(self._inside.graph, "inputs"):
            for link_id in entry.get("linkIds") or ():
                link = self._inside.links.get(link_id)
                if link and (link.target, link_id) in fields:
                    yield entry["name"], link.target, fields[link.target, link_id]
