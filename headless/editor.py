"""Flattens the editor's workflow format into API format, as ComfyUI's page does when it queues a prompt.

Reroutes, notes and primitives are the page's own nodes and vanish; muted and bypassed nodes vanish; subgraphs are
replaced by what is in them, the node ``7`` of the subgraph ``12`` becoming ``12:7``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..pipelines.errors import WorkflowError
from ..pipelines.words import shown
from .inputs import as_prompt_value, declared_inputs, widget_values
from .prompt import Definitions, Prompt, unknown_classes

_MUTED = 2
_BYPASSED = 4
_NOTES = ("Note", "MarkdownNote")
# the page's own, other packs', and the two halves of wires that are not drawn: they carry on what comes in
_WIRES = ("Reroute", "Reroute (rgthree)", "SetNode", "easy setNode")
_SETTERS = ("SetNode", "easy setNode")
_GETTERS = ("GetNode", "easy getNode")
# nodes of other packs' pages that links lead into, to say which nodes they switch; nothing runs in them
_SWITCHES = frozenset(
    f"{name} (rgthree)"
    for name in (
        "Fast Muter", "Fast Bypasser", "Fast Groups Muter", "Fast Groups Bypasser", "Fast Actions Button",
        "Mute / Bypass Repeater", "Mute / Bypass Relay", "Node Mode Relay", "Node Mode Repeater", "Node Collector",
        "Node Combiner", "Random Unmuter", "Label", "Bookmark",
    )
)  # fmt: skip
_GROUP = ("workflow>", "workflow/")
_SHOWN_UNKNOWN = 20
_DEEPEST = 50  # subgraphs in each other
_MOST_PARTS = 200_000  # nodes and links of a workflow, those of a subgraph as often as it is used
_PRIMITIVE = "PrimitiveNode"
_VIRTUAL = frozenset((*_NOTES, *_WIRES, *_GETTERS, *_SWITCHES, _PRIMITIVE))
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


@dataclass(frozen=True)
class _At:
    """On the way from an input to what feeds it: a link of a level; ``wanted`` is the type at the input."""

    level: _Level
    link: _Link
    wanted: str


_Source = _Output | _Constant | None
_Step = _Output | _Constant | _At | None


def flatten(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    """Returns the editor's workflow in API format; see :func:`.workflow.to_prompt`."""
    try:
        return _flattened(document, definitions)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        # The file is somebody else's: whatever is missing or misshapen in it ends up here.
        what = f"it has no {shown(error.args[0])}" if isinstance(error, KeyError) else type(error).__name__
        raise WorkflowError(f"The workflow file is damaged ({what}). Open it in ComfyUI and save it again.") from error


def _flattened(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    subgraphs = {str(subgraph["id"]): subgraph for subgraph in _subgraphs(document)}
    _refuse_multiplied(document, subgraphs)
    levels = list(_Level("", document, subgraphs, definitions).walk())
    nodes = {level.prefix + node_id: (level, node_id, node) for level in levels for node_id, node in level.running()}
    known = {node_id for node_id, (_, _, node) in nodes.items() if node["type"] in definitions}
    prompt = {name: nodes[name][0].prompt_node(*nodes[name][1:]) for name in nodes if name in known}
    needed = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    # a page-only node of another pack has no class; one that takes nothing and that nothing needs is left out, as there
    matters = needed if prompt else set(nodes)
    unknown = {name: found for name, found in nodes.items() if name not in known}
    left = [found for name, found in unknown.items() if name in matters or _does_something(found[2])]
    _refuse_unknown(left, definitions)
    return prompt


def _does_something(node: Mapping[str, Any]) -> bool:
    """True for a node of no known class that may matter though nothing needs it: it takes something, or is a group."""
    return str(node["type"]).startswith(_GROUP) or any(slot.get("link") is not None for slot in _slots(node, "inputs"))


def _refuse_multiplied(document: Mapping[str, Any], subgraphs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a small file whose subgraphs make a huge workflow, before it is made."""
    sizes: dict[str, int] = {}
    parts = ("nodes", "links")

    def size(graph: Mapping[str, Any], around: tuple[str, ...]) -> int:
        total = sum(len(graph.get(part) or ()) for part in parts)
        for node in graph.get("nodes") or ():
            kind = str(node.get("type"))
            if kind not in subgraphs or _mode(node) in (_MUTED, _BYPASSED):
                continue
            if kind in around:
                raise WorkflowError(
                    f"Subgraph {_subgraph_name(subgraphs[kind])} contains itself. Save the workflow again."
                )
            if len(around) >= _DEEPEST:
                raise WorkflowError(f"Its subgraphs lie more than {_DEEPEST} deep in each other. {_UNPACK}")
            if kind not in sizes:
                sizes[kind] = size(subgraphs[kind], (*around, kind))
            total += sizes[kind]
        return total

    if size(document, ()) > _MOST_PARTS:
        raise WorkflowError(
            f"Its subgraphs multiply to more than {_MOST_PARTS:,} nodes and links. Use fewer of them in each other."
        )


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
        return _Level(f"{self.prefix}{node_id}:", subgraph, subgraphs, self._definitions, (self, node_id))

    def walk(self) -> Iterator[_Level]:
        """This level and all below it."""
        yield self
        for inner in self._inner.values():
            yield from inner.walk()

    def running(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The nodes of this level that become nodes of the prompt."""
        for node_id, node in self.nodes.items():
            known = node["type"] in self._definitions
            virtual = (node["type"] in _VIRTUAL and not known) or node_id in self._inner
            if not virtual and _mode(node) not in (_MUTED, _BYPASSED):
                yield node_id, node

    def prompt_node(self, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node in API format: its widgets' values, and over them what is linked to it."""
        title = node.get("title") or self._definitions[node["type"]].get("display_name") or node["type"]
        inputs = self._widget_values(node_id)
        for index, slot in enumerate(_slots(node, "inputs")):
            source = self._input_source(node_id, index, str(slot.get("type")))
            if isinstance(source, _Output):
                inputs[slot["name"]] = [source.node_id, source.slot]
            elif isinstance(source, _Constant):
                inputs[slot["name"]] = as_prompt_value(source.value)
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def _widget_values(self, node_id: str) -> dict[str, Any]:
        node = self.nodes[node_id]
        declared = declared_inputs(self._definitions.get(node["type"], {}))
        return widget_values(node.get("widgets_values"), declared, f"Node {self.prefix}{node_id} ({_title(node)})")

    def _input_source(self, node_id: str, index: int, wanted: str) -> _Source:
        """What reaches an input of a node of this level; ``wanted`` is the type at the end of the chain of links."""
        at = self._input_link(node_id, index, wanted)
        seen: set[tuple[str, str, int]] = set()
        # a loop, not a recursion: a chain of reroutes has any length
        while isinstance(at, _At):
            at = at.level._follow(at.link, at.wanted, seen)
        return at

    def _input_link(self, node_id: str, index: int, wanted: str) -> _Step:
        """The link at an input, where there is one."""
        slot = _slots(self.nodes[node_id], "inputs")[index]
        if slot.get("link") is None:
            return None
        link = self._links.get(slot["link"])
        if link is None:
            raise WorkflowError(
                f"Node {self.prefix}{node_id} ({_title(self.nodes[node_id])}), input {slot.get('name')!r}: its link "
                f"{slot['link']} is not in the file. Open the workflow in ComfyUI, connect the input and save it again."
            )
        return _At(self, link, wanted)

    def _follow(self, link: _Link, wanted: str, seen: set[tuple[str, str, int]]) -> _Step:
        """What a link of this level carries, or the link that comes before it."""
        if link.origin == _SUBGRAPH_INPUT:
            return self._outer_link(link.origin_slot, wanted)
        node_id, slot = link.origin, link.origin_slot
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
        seen.add(step)
        if _mode(node) == _MUTED:
            return None
        if _mode(node) == _BYPASSED:
            index = _bypass_input(node, slot, wanted)
            if index is None:
                return None
            return self._input_link(node_id, index, str(_slots(node, "inputs")[index].get("type")))
        if node_id in self._inner:
            return self._inner[node_id]._own_output_link(slot, wanted)
        return self._node_output(node_id, slot, wanted)

    def _node_output(self, node_id: str, slot: int, wanted: str) -> _Step:
        """What an output of a node carries that is neither muted nor a subgraph."""
        node = self.nodes[node_id]
        kind = node["type"]
        if kind in self._definitions:
            return _Output(self.prefix + node_id, slot)
        if kind in _GETTERS:
            return self._setter_link(_wire_name(node), wanted, f"Node {self.prefix}{node_id} ({_title(node)})")
        if kind in _WIRES:
            return self._input_link(node_id, 0, wanted) if _slots(node, "inputs") else None
        if kind == _PRIMITIVE:
            values = node.get("widgets_values") or [None]
            return None if values[0] is None else _Constant(values[0])
        return _Output(self.prefix + node_id, slot)

    def _setter_link(self, name: object, wanted: str, where: str) -> _Step:
        """The link into the Set node of a name: of this level, else of those around it."""
        level: _Level | None = self
        while level is not None:
            for node_id, node in level.nodes.items():
                if node["type"] in _SETTERS and _wire_name(node) == name and _slots(node, "inputs"):
                    return level._input_link(node_id, 0, wanted)
            level = level._parent[0] if level._parent else None
        raise WorkflowError(
            f"{where} gets {shown(name)}, and no Set node of the workflow sets it. Choose another name."
        )

    def _own_output_link(self, slot: int, wanted: str) -> _Step:
        """What the output ``slot`` of this subgraph carries."""
        for link in self._links.values():
            if link.target == _SUBGRAPH_OUTPUT and link.target_slot == slot:
                return _At(self, link, wanted)
        return None

    def _outer_link(self, slot: int, wanted: str) -> _Step:
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
                return outer._input_link(node_id, index, str(outer_slot.get("type")))
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


def _wire_name(node: Mapping[str, Any]) -> object:
    """What a Set or Get node is called by: its only widget."""
    values = node.get("widgets_values") or [None]
    return next(iter(values.values()), None) if isinstance(values, dict) else values[0]


def _refuse_unknown(nodes: list[tuple[_Level, str, Mapping[str, Any]]], definitions: Definitions) -> None:
    unknown: list[str] = []
    for level, node_id, node in nodes:
        kind = str(node["type"])
        if kind.startswith(_GROUP):
            raise WorkflowError(
                f"Node {level.prefix}{node_id} is the group node {shown(kind[9:])}, an old kind of subgraph that only "
                f"the editor can take apart. {_UNPACK}"
            )
        if len(unknown) < _SHOWN_UNKNOWN:
            unknown.append(f"{shown(kind)} (node {level.prefix}{node_id}, {shown(_title(node))}{_pack(node)})")
    if unknown:
        raise unknown_classes(unknown, definitions)


def _pack(node: Mapping[str, Any]) -> str:
    properties = node.get("properties") or {}
    pack = properties.get("cnr_id") or properties.get("aux_id")
    return f", of the pack {shown(pack)}" if pack else ""
