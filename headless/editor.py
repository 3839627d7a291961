"""Flattens the editor's workflow format into API format, as ComfyUI's page does when it queues a prompt.

Reroutes, notes and primitives are the page's own nodes and vanish; muted and bypassed nodes vanish; subgraphs are
replaced by what is in them, the node ``7`` of the subgraph ``12`` becoming ``12:7``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..pipelines.errors import WorkflowError
from .inputs import as_prompt_value, declared_inputs, widget_values
from .prompt import Definitions, Prompt, unknown_classes

_MUTED = 2
_BYPASSED = 4
_NOTES = ("Note", "MarkdownNote")
_REROUTE = "Reroute"
_PRIMITIVE = "PrimitiveNode"
_SUBGRAPH_INPUT = "-10"
_SUBGRAPH_OUTPUT = "-20"
_UNPACK = "Unpack it in the editor, or save the workflow with 'Export (API)'."


@dataclass(frozen=True)
class _Output:
    """An output of a node that really runs; ``node_id`` is its id in the prompt."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class _Constant:
    """A value that a primitive, or a field on a subgraph, puts where the link leads."""

    value: Any


@dataclass(frozen=True)
class _Link:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


_Source = _Output | _Constant | None
_Seen = frozenset[tuple[str, str, int]]


def flatten(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    """Returns the editor's workflow in API format; see :func:`.workflow.to_prompt`."""
    try:
        return _flattened(document, definitions)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # The file is somebody else's: whatever is missing or misshapen in it ends up here.
        raise WorkflowError(
            f"The workflow file is damaged ({type(error).__name__}: {error}). Open it in ComfyUI and save it again."
        ) from error


def _flattened(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    subgraphs = {str(subgraph["id"]): subgraph for subgraph in _subgraphs(document)}
    levels = list(_Level("", document, subgraphs, definitions).walk())
    _refuse_unknown(levels, definitions)
    prompt: Prompt = {}
    for level in levels:
        for node_id, node in level.running():
            prompt[level.prefix + node_id] = level.prompt_node(node_id, node)
    return prompt


class _Level:
    """The workflow itself, or one use of a subgraph in it: nodes and links that share one set of ids.

    Args:
        prefix: what the ids of the nodes start with in the prompt; empty, or ``"12:"``, ``"12:7:"``, ...
        graph: the workflow, or the subgraph's definition.
        subgraphs: all subgraph definitions by id.
        definitions: the node classes that can be run.
        parent: the level that uses the subgraph, and the id of the node there that stands for it.
    """

    def __init__(
        self,
        prefix: str,
        graph: Mapping[str, Any],
        subgraphs: Mapping[str, Mapping[str, Any]],
        definitions: Definitions,
        parent: tuple[_Level, str] | None = None,
    ) -> None:
        self.prefix = prefix
        self.nodes = {str(node["id"]): node for node in graph["nodes"]}
        self._graph = graph
        self._definitions = definitions
        self._links = dict(_links(graph))
        self._parent = parent
        self._inner = {
            node_id: self._use(node_id, subgraphs[str(node.get("type"))], subgraphs)
            for node_id, node in self.nodes.items()
            if str(node.get("type")) in subgraphs and _mode(node) not in (_MUTED, _BYPASSED)
        }

    def _use(self, node_id: str, subgraph: Mapping[str, Any], subgraphs: Mapping[str, Mapping[str, Any]]) -> _Level:
        level: _Level | None = self
        while level is not None:
            if level._graph is subgraph:
                raise WorkflowError(f"Subgraph {_subgraph_name(subgraph)} contains itself. Save the workflow again.")
            level = level._parent[0] if level._parent else None
        return _Level(f"{self.prefix}{node_id}:", subgraph, subgraphs, self._definitions, (self, node_id))

    def walk(self) -> Iterator[_Level]:
        """This level and all below it."""
        yield self
        for inner in self._inner.values():
            yield from inner.walk()

    def running(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The nodes of this level that become nodes of the prompt."""
        for node_id, node in self.nodes.items():
            virtual = node["type"] in (*_NOTES, _REROUTE, _PRIMITIVE) or node_id in self._inner
            if not virtual and _mode(node) not in (_MUTED, _BYPASSED):
                yield node_id, node

    def prompt_node(self, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node in API format: its widgets' values, and over them what is linked to it."""
        title = node.get("title") or self._definitions[node["type"]].get("display_name") or node["type"]
        inputs = self._widget_values(node_id)
        for index, slot in enumerate(_slots(node, "inputs")):
            source = self._input_source(node_id, index, str(slot.get("type")), frozenset())
            if isinstance(source, _Output):
                inputs[slot["name"]] = [source.node_id, source.slot]
            elif isinstance(source, _Constant):
                inputs[slot["name"]] = as_prompt_value(source.value)
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def _widget_values(self, node_id: str) -> dict[str, Any]:
        node = self.nodes[node_id]
        declared = declared_inputs(self._definitions.get(node["type"], {}))
        return widget_values(node.get("widgets_values"), declared, f"Node {self.prefix}{node_id} ({_title(node)})")

    def _input_source(self, node_id: str, index: int, wanted: str, seen: _Seen) -> _Source:
        """What reaches an input of a node of this level; ``wanted`` is the type at the end of the chain of links."""
        slot = _slots(self.nodes[node_id], "inputs")[index]
        if slot.get("link") is None:
            return None
        link = self._links.get(slot["link"])
        if link is None:
            raise WorkflowError(
                f"Node {self.prefix}{node_id} ({_title(self.nodes[node_id])}), input {slot.get('name')!r}: its link "
                f"{slot['link']} is not in the file. Open the workflow in ComfyUI, connect the input and save it again."
            )
        return self._link_source(link, wanted, seen)

    def _link_source(self, link: _Link, wanted: str, seen: _Seen) -> _Source:
        if link.origin == _SUBGRAPH_INPUT:
            return self._outer_source(link.origin_slot, wanted, seen)
        return self._output_source(link.origin, link.origin_slot, wanted, seen)

    def _output_source(self, node_id: str, slot: int, wanted: str, seen: _Seen) -> _Source:
        """What an output of a node of this level carries."""
        node = self.nodes.get(node_id)
        if node is None:
            raise WorkflowError(
                f"A link comes from node {self.prefix}{node_id}, which is not in the file. Save the workflow again."
            )
        step = (self.prefix, node_id, slot)
        if step in seen:
            raise WorkflowError(
                f"Links go round in a circle through node {self.prefix}{node_id} ({_title(node)}). Cut one of them."
            )
        seen |= {step}
        if _mode(node) == _MUTED:
            return None
        if _mode(node) == _BYPASSED:
            index = _bypass_input(node, slot, wanted)
            if index is None:
                return None
            return self._input_source(node_id, index, str(_slots(node, "inputs")[index].get("type")), seen)
        if node_id in self._inner:
            return self._inner[node_id]._own_output_source(slot, wanted, seen)
        if node["type"] == _REROUTE:
            return self._input_source(node_id, 0, wanted, seen) if _slots(node, "inputs") else None
        if node["type"] == _PRIMITIVE:
            values = node.get("widgets_values") or [None]
            return None if values[0] is None else _Constant(values[0])
        return _Output(self.prefix + node_id, slot)

    def _own_output_source(self, slot: int, wanted: str, seen: _Seen) -> _Source:
        """What the output ``slot`` of this subgraph carries."""
        for link in self._links.values():
            if link.target == _SUBGRAPH_OUTPUT and link.target_slot == slot:
                return self._link_source(link, wanted, seen)
        return None

    def _outer_source(self, slot: int, wanted: str, seen: _Seen) -> _Source:
        """What reaches the input ``slot`` of this subgraph from the level above: a link, or a field's value."""
        if self._parent is None:
            raise WorkflowError("The workflow links to a subgraph's inputs outside a subgraph. Save it again.")
        outer, node_id = self._parent
        try:
            name = self._graph["inputs"][slot]["name"]
        except (KeyError, IndexError):
            raise WorkflowError(
                f"Subgraph {_subgraph_name(self._graph)} has no input {slot}, but one of its nodes is linked to that. "
                + _UNPACK
            ) from None
        # The editor leaves fields without a link out of a saved node's inputs, so positions say nothing here.
        for index, outer_slot in enumerate(_slots(outer.nodes[node_id], "inputs")):
            if outer_slot.get("name") == name and outer_slot.get("link") is not None:
                return outer._input_source(node_id, index, str(outer_slot.get("type")), seen)
        value = self._field_value(name)
        return None if value is None else _Constant(value)

    def _field_value(self, name: str) -> Any:
        """The value of the field that this subgraph shows for its input ``name``, or None if it shows none.

        Some versions of the editor store it at the node that stands for the subgraph, others where the field comes
        from: at the first of the inner nodes that are linked to the input.
        """
        assert self._parent is not None
        outer, node_id = self._parent
        stored = self._stored_field_values(outer.nodes[node_id]).get(name)
        if stored is not None:
            return stored
        for target, widget in self._fields(name):
            if target in self._inner:
                return self._inner[target]._field_value(widget)
            return self._widget_values(target).get(widget)
        return None

    def _stored_field_values(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """What the node that stands for this subgraph stores, by the subgraph's input names."""
        stored = node.get("widgets_values") or []
        if isinstance(stored, dict):
            return stored
        proxies = (node.get("properties") or {}).get("proxyWidgets") or []
        own = [str(entry[1]) for entry in proxies if str(entry[0]) == "-1"]
        names = own or [entry["name"] for entry in _slots(self._graph, "inputs") if any(self._fields(entry["name"]))]
        if own and len(stored) == len(proxies):
            stored = [value for value, entry in zip(stored, proxies, strict=True) if str(entry[0]) == "-1"]
        return dict(zip(names, stored, strict=True)) if len(stored) == len(names) else {}

    def _fields(self, name: str) -> Iterator[tuple[str, str]]:
        """The inner nodes, and their widgets, that are linked to this subgraph's input ``name``."""
        for entry in _slots(self._graph, "inputs"):
            for link_id in entry.get("linkIds") or () if entry["name"] == name else ():
                target = self._links[link_id].target if link_id in self._links else ""
                for slot in _slots(self.nodes.get(target, {}), "inputs"):
                    if slot.get("link") == link_id and slot.get("widget"):
                        yield target, slot["widget"]["name"]


def _mode(node: Mapping[str, Any]) -> int:
    return node.get("mode") or 0


def _title(node: Mapping[str, Any]) -> str:
    return node.get("title") or node["type"]


def _slots(node: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    return node.get(side) or []


def _subgraph_name(subgraph: Mapping[str, Any]) -> str:
    return repr(subgraph.get("name") or subgraph.get("id"))


def _subgraphs(graph: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All subgraph definitions; a definition may bring its own along."""
    for subgraph in (graph.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from _subgraphs(subgraph)


def _links(graph: Mapping[str, Any]) -> Iterator[tuple[Any, _Link]]:
    """Links by id. The workflow itself has them as lists, subgraphs and the schema's version 1 as objects."""
    for link in graph.get("links") or ():
        if isinstance(link, dict):
            ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
            yield link["id"], _Link(str(ends[0]), ends[1], str(ends[2]), ends[3])
        elif link is not None:
            yield link[0], _Link(str(link[1]), link[2], str(link[3]), link[4])


def _bypass_input(node: Mapping[str, Any], slot: int, wanted: str) -> int | None:
    """The input that a bypassed node passes on through its output ``slot``, or None if none fits."""
    inputs = [str(entry.get("type")) for entry in _slots(node, "inputs")]
    if not inputs:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(inputs) else 0
    carried = str(_slots(node, "outputs")[slot].get("type"))
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


def _refuse_unknown(levels: list[_Level], definitions: Definitions) -> None:
    unknown: list[str] = []
    for level in levels:
        for node_id, node in level.running():
            kind = str(node["type"])
            if kind.startswith(("workflow>", "workflow/")):
                raise WorkflowError(
                    f"Node {level.prefix}{node_id} is the group node {kind[9:]!r}, an old kind of subgraph that only "
                    f"the editor can take apart. {_UNPACK}"
                )
            if kind not in definitions:
                unknown.append(f"{kind!r} (node {level.prefix}{node_id}, {_title(node)!r}{_pack(node)})")
    if unknown:
        raise unknown_classes(unknown, definitions)


def _pack(node: Mapping[str, Any]) -> str:
    properties = node.get("properties") or {}
    pack = properties.get("cnr_id") or properties.get("aux_id")
    return f", of the pack {pack!r}" if pack else ""
