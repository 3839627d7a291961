"""One level of the editor's workflow (itself, or one use of a subgraph), and where each input's value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import WorkflowError
from ..pipelines.words import shown
from .inputs import as_prompt_value, declared_inputs, widget_values
from .page_nodes import PRIMITIVE, SETTER_OF, broadcast_links, is_page_only, is_wire, page_fields, wire_name
from .saved_graph import (
    SUBGRAPH_INPUT,
    SUBGRAPH_OUTPUT,
    UNPACK,
    Graph,
    Link,
    Node,
    bypass_input,
    is_bypassed,
    is_muted,
    is_off,
    label,
    links_in,
    slots,
    subgraph_label,
)
from .subgraph_fields import SubgraphFields

if TYPE_CHECKING:
    from .prompt import Definitions

_MOST_STEPS = 300_000  # from link to link, of all inputs together


@dataclass(frozen=True)
class Output:
    """An output of a node that really runs; ``node_id`` is its id in the prompt."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class Constant:
    """A value that a primitive, or a field on a subgraph, puts where the link leads."""

    value: Any


@dataclass(frozen=True)
class _At:
    """On the way from an input to what feeds it: a link of a level; ``wanted`` is the type at the input."""

    level: Level
    link: Link
    wanted: str


Source = Output | Constant | None
_Step = Output | Constant | _At | None


@dataclass
class Workflow:
    """What all levels share.

    Attributes:
        subgraphs: all definitions by id.
        definitions: the node classes that can be run.
        steps: how many were taken from link to link.
    """

    subgraphs: Mapping[str, Graph]
    definitions: Definitions
    steps: int = 0

    def step(self, work: int = 1) -> None:
        self.steps += work
        if self.steps > _MOST_STEPS:
            raise WorkflowError(
                f"Its chains of links are too long: following all of them takes more than {_MOST_STEPS:,} steps. "
                "Use fewer reroutes and bypassed nodes behind each other."
            )


class Level:
    """Nodes and links that share one set of ids.

    Args:
        prefix: what the ids of the nodes start with in the prompt; empty, or ``"12:"``, ``"12:7:"``, ...
        graph: the workflow, or the subgraph's definition.
        workflow: what all levels share.
        parent: the level that uses the subgraph, and the id of the node there that stands for it.
    """

    def __init__(self, prefix: str, graph: Graph, workflow: Workflow, parent: tuple[Level, str] | None = None) -> None:
        self.prefix = prefix
        self.graph = graph
        self.nodes = {str(node["id"]): node for node in graph["nodes"]}
        self.links = dict(links_in(graph))
        self.parent = parent
        self._workflow = workflow
        self._broadcasts: dict[str, dict[str | int, Link]] = {}
        for node_id, name, link in broadcast_links(graph, workflow.definitions):
            self._broadcasts.setdefault(node_id, {})[name] = link
        self.inner = {
            node_id: Level(f"{prefix}{node_id}:", workflow.subgraphs[str(node["type"])], workflow, (self, node_id))
            for node_id, node in self.nodes.items()
            if str(node["type"]) in workflow.subgraphs and not is_off(node)
        }

    def walk(self) -> Iterator[Level]:
        """This level and all below it."""
        yield self
        for inner in self.inner.values():
            yield from inner.walk()

    def running(self) -> Iterator[tuple[str, Node]]:
        """The nodes of this level that become nodes of the prompt."""
        for node_id, node in self.nodes.items():
            page_only = is_page_only(node["type"], self._workflow.definitions)
            if not page_only and node_id not in self.inner and not is_off(node):
                yield node_id, node

    def label(self, node_id: str) -> str:
        """A node of this level in a message."""
        return label(self.prefix + node_id, self.nodes[node_id])

    def prompt_node(self, node_id: str) -> dict[str, Any]:
        """The node in API format: its widgets' values, and over them what is linked to it."""
        node = self.nodes[node_id]
        title = node.get("title") or self._definition(node).get("display_name") or node["type"]
        inputs = self.widget_values(node_id)
        for name, source in self._sources(node_id, node):
            if isinstance(source, Output):
                inputs[name] = [source.node_id, source.slot]
            elif isinstance(source, Constant):
                inputs[name] = as_prompt_value(source.value)
        inputs |= page_fields(node, inputs)
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def widget_values(self, node_id: str) -> dict[str, Any]:
        """The values of a node's own fields."""
        node = self.nodes[node_id]
        return widget_values(
            node.get("widgets_values"), declared_inputs(self._definition(node)), f"Node {self.label(node_id)}"
        )

    def inner_fields(self, node_id: str) -> SubgraphFields | None:
        """The fields of a node that stands for a subgraph; None of any other."""
        return self.inner[node_id].fields if node_id in self.inner else None

    @cached_property
    def fields(self) -> SubgraphFields:
        """The fields that the node shows which stands for this subgraph."""
        outer, node_id = self.parent or (self, "")
        return SubgraphFields(self, outer.nodes[node_id])

    def _definition(self, node: Node) -> Mapping[str, Any]:
        return self._workflow.definitions.get(node["type"], {})

    def _sources(self, node_id: str, node: Node) -> Iterator[tuple[str, Source]]:
        """What reaches the inputs of a node of this level, by their names."""
        types = {slot.get("name"): str(slot.get("type")) for slot in slots(node, "inputs")}
        sent = self._broadcasts.get(node_id, {})
        for name, link in sent.items():
            yield str(name), self._traced(_At(self, link, types.get(name, "*")))
        for index, slot in enumerate(slots(node, "inputs")):
            if slot["name"] not in sent:
                yield slot["name"], self._traced(self.input_link(node_id, index, str(slot.get("type"))))

    def _traced(self, at: _Step) -> Source:
        """Where a chain of links begins. A loop, not a recursion: a chain of reroutes has any length."""
        seen: set[tuple[str, str, int]] = set()
        while isinstance(at, _At):
            self._workflow.step()
            at = at.level._follow(at.link, at.wanted, seen)
        return at

    def input_link(self, node_id: str, index: int, wanted: str) -> _Step:
        """The link at an input, where there is one."""
        slot = slots(self.nodes[node_id], "inputs")[index]
        if slot.get("link") is None:
            return None
        link = self.links.get(slot["link"])
        if link is None:
            raise WorkflowError(
                f"Node {self.label(node_id)}, input {shown(slot.get('name'))}: its link {shown(slot['link'])} is not "
                "in the file. Open the workflow in ComfyUI, connect the input and save it again."
            )
        return _At(self, link, wanted)

    def _follow(self, link: Link, wanted: str, seen: set[tuple[str, str, int]]) -> _Step:
        """What a link of this level carries, or the link that comes before it."""
        if link.origin == SUBGRAPH_INPUT:
            return self._outer_link(link.origin_slot, wanted)
        node_id, slot = link.origin, link.origin_slot
        node = self.nodes.get(node_id)
        if node is None:
            raise WorkflowError(
                f"A link comes from node {shown(self.prefix + node_id)}, which is not in the file. Save the workflow "
                "again."
            )
        step = (self.prefix, node_id, slot)
        if step in seen:
            raise WorkflowError(f"Links go round in a circle through node {self.label(node_id)}. Cut one of them.")
        seen.add(step)
        if is_page_only(node["type"], self._workflow.definitions) and node["type"] == PRIMITIVE:
            # it writes its value into the field, and does so when muted, too
            values = node.get("widgets_values") or [None]
            return None if values[0] is None else Constant(values[0])
        if is_muted(node):
            return None
        if is_bypassed(node):
            self._workflow.step(len(slots(node, "inputs")))
            index = bypass_input(node, slot, wanted)
            if index is None:
                return None
            return self.input_link(node_id, index, str(slots(node, "inputs")[index].get("type")))
        if node_id in self.inner:
            return self.inner[node_id]._own_output_link(slot, wanted)
        return self._node_output(node_id, slot, wanted)

    def _node_output(self, node_id: str, slot: int, wanted: str) -> _Step:
        """What an output of a node carries that is neither off nor a subgraph."""
        node = self.nodes[node_id]
        if is_page_only(node["type"], self._workflow.definitions):
            if node["type"] in SETTER_OF:
                return self._setter_link(node_id, wanted)
            if is_wire(node["type"]):
                return self.input_link(node_id, 0, wanted) if slots(node, "inputs") else None
        return Output(self.prefix + node_id, slot)

    def _setter_link(self, getter_id: str, wanted: str) -> _Step:
        """The link into the Set node that a Get node names: of this level, else of those around it."""
        getter = self.nodes[getter_id]
        name = wire_name(getter)
        level: Level | None = self
        while level is not None and isinstance(name, str) and name:
            setter_id = level._setters.get((SETTER_OF[getter["type"]], name))
            if setter_id is not None:
                # a muted Set node sets as well: only its own output is dead
                return level.input_link(setter_id, 0, wanted) if slots(level.nodes[setter_id], "inputs") else None
            level = level.parent[0] if level.parent else None
        raise WorkflowError(
            f"Node {self.label(getter_id)} gets {shown(name)}, and no Set node of the workflow sets it. Choose another "
            "name."
        )

    @cached_property
    def _setters(self) -> dict[tuple[str, str], str]:
        """The first Set node of each kind and name."""
        found: dict[tuple[str, str], str] = {}
        for node_id, node in self.nodes.items():
            name = wire_name(node) if node["type"] in SETTER_OF.values() else None
            if isinstance(name, str):
                found.setdefault((node["type"], name), node_id)
        return found

    def _own_output_link(self, slot: int, wanted: str) -> _Step:
        """What the output ``slot`` of this subgraph carries."""
        link = self._broadcasts.get(SUBGRAPH_OUTPUT, {}).get(slot) or self._output_links.get(slot)
        return None if link is None else _At(self, link, wanted)

    @cached_property
    def _output_links(self) -> dict[int, Link]:
        found: dict[int, Link] = {}
        for link in self.links.values():
            if link.target == SUBGRAPH_OUTPUT:
                found.setdefault(link.target_slot, link)
        return found

    def _outer_link(self, slot: int, wanted: str) -> _Step:
        """What reaches the input ``slot`` of this subgraph from the level above: a link, or a field's value."""
        if self.parent is None:
            raise WorkflowError("The workflow links to a subgraph's inputs outside a subgraph. Save it again.")
        outer, node_id = self.parent
        try:
            name = self.graph["inputs"][slot]["name"]
        except (KeyError, IndexError):
            raise WorkflowError(
                f"Subgraph {subgraph_label(self.graph)} has no input {shown(slot)}, but one of its nodes is linked to "
                f"that. {UNPACK}"
            ) from None
        # The editor leaves fields without a link out of a saved node's inputs, so positions say nothing here.
        for index, outer_slot in enumerate(slots(outer.nodes[node_id], "inputs")):
            self._workflow.step()
            if outer_slot.get("name") == name and outer_slot.get("link") is not None:
                return outer.input_link(node_id, index, str(outer_slot.get("type")))
        value = self.fields.value(name)
        return None if value is None else Constant(value)
