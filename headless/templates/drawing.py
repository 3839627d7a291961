"""A workflow in the editor's format, made node by node: columns from left to right, wires, one note."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from ...nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ...pipelines.errors import InputError
from ...pipelines.run.report import pack_version
from ..core_nodes import CORE_CLASSES, CORE_NAMES
from ..inputs import Spec, declared_inputs, extra_entries, is_combo, is_widget
from ..workflow import definitions_of
from .layout import note_height, place

NOTE = "MarkdownNote"
_CLASSES = {**CORE_CLASSES, **NODE_CLASS_MAPPINGS}
_NAMES = {**CORE_NAMES, **NODE_DISPLAY_NAME_MAPPINGS}
_IDS = uuid.UUID("7d1b7f0e-2a53-4a0c-9f0e-aa17c0000000")
_PACK = "aitk-nodes"
_CORE = {"cnr_id": "comfy-core", "ver": "0.3.48"}  # the oldest ComfyUI that the pack runs in
_OPTIONAL = 7  # LiteGraph's shape of a socket that may stay empty


@dataclass(frozen=True)
class ModelFile:
    """A file that a node names: what the editor's list of missing models offers for download.

    Attributes:
        name: the file's, as the widget has it.
        url: where it is.
        directory: ComfyUI's folder for it.
    """

    name: str
    url: str
    directory: str


@dataclass
class Node:
    """A node on the drawing.

    Attributes:
        id: in the file.
        kind: class id.
        title: over it.
        column: which of the drawing's.
        values: of its widgets, by name.
        wires: what comes into its inputs, by name.
        files: that it names.
    """

    id: int
    kind: str
    title: str
    column: int
    values: dict[str, Any] = field(default_factory=dict)
    wires: dict[str, Output] = field(default_factory=dict)
    files: tuple[ModelFile, ...] = ()

    def out(self, name: str) -> Output:
        """An output by its name."""
        node_class = _CLASSES[self.kind]
        names = getattr(node_class, "RETURN_NAMES", None) or [kind.lower() for kind in node_class.RETURN_TYPES]
        return Output(self, list(names).index(name))


@dataclass(frozen=True)
class Output:
    """One end of a wire."""

    node: Node
    slot: int


class Drawing:
    """A workflow in the making.

    Attributes:
        name: the file's, and what the template browser shows.
        nodes: in the order in which they were added.
        columns: their titles, from left to right.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.columns: list[str] = []
        self._note = ""
        self._definitions = definitions_of(_CLASSES, _NAMES)

    def column(self, title: str) -> None:
        """Begins a column on the right; nodes that are added next stand below each other in it."""
        self.columns.append(title)

    def note(self, text: str) -> None:
        """What the user reads first, as Markdown."""
        self._note = text

    def add(self, kind: str, title: str = "", files: tuple[ModelFile, ...] = (), **inputs: Any) -> Node:
        """A node; each input is a value or another node's :class:`Output`."""
        declared = self._declared(kind)
        unknown = inputs.keys() - declared.keys()
        if unknown:
            raise InputError(f"{kind} has no input {', '.join(sorted(unknown))}.")
        node = Node(len(self.nodes) + 2, kind, title or _NAMES[kind], len(self.columns) - 1, files=files)
        node.wires = {name: value for name, value in inputs.items() if isinstance(value, Output)}
        given = {name: value for name, value in inputs.items() if name not in node.wires}
        widgets = {name: spec for name, spec in declared.items() if is_widget(spec)}
        node.values = {name: given.get(name, _default(spec)) for name, spec in widgets.items()}
        self.nodes.append(node)
        return node

    def document(self) -> dict[str, Any]:
        """The file's content."""
        sizes = [(node.column, node.kind) for node in self.nodes]
        placed = place(sizes, self.columns, note_height(self._note))
        links: list[list[Any]] = []
        inputs = {node.id: self._sockets(node, links) for node in self.nodes}
        nodes = [
            self._saved(node, order, inputs[node.id], links, placed.nodes[order - 1])
            for order, node in enumerate(self.nodes, 1)
        ]
        note = {
            "id": 1, "type": NOTE, **placed.note.as_json(), "flags": {}, "order": 0, "mode": 0, "inputs": [],
            "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [self._note],
            "color": "#432", "bgcolor": "#000",
        }  # fmt: skip
        return {
            "id": str(uuid.uuid5(_IDS, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes) + 1,
            "last_link_id": len(links),
            "nodes": [note, *nodes],
            "links": links,
            "groups": [
                {"id": number, "title": title, "bounding": box, "color": "#3f789e", "font_size": 24, "flags": {}}
                for number, (title, box) in enumerate(zip(self.columns, placed.groups, strict=True), 1)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [540, 160]}},
            "version": 0.4,
        }

    def _declared(self, kind: str) -> dict[str, Spec]:
        return declared_inputs(self._definitions[kind])

    def _sockets(self, node: Node, links: list[list[Any]]) -> list[dict[str, Any]]:
        """The node's inputs as the editor saves them, those without a widget first; adds its links."""
        definition = self._definitions[node.kind]
        optional = definition["input"].get("optional", {})
        declared = self._declared(node.kind)
        found = []
        for name in sorted(declared, key=lambda name: is_widget(declared[name])):
            spec, wire = declared[name], node.wires.get(name)
            kind = "COMBO" if is_combo(spec) else spec[0]
            entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if is_widget(spec):
                entry["widget"] = {"name": name}
            elif name in optional:
                entry["shape"] = _OPTIONAL
            if wire is not None:
                entry["link"] = len(links) + 1
                carried = _CLASSES[wire.node.kind].RETURN_TYPES[wire.slot]
                links.append([len(links) + 1, wire.node.id, wire.slot, node.id, len(found), carried])
            found.append(entry)
        return found

    def _saved(
        self, node: Node, order: int, inputs: list[dict[str, Any]], links: list[list[Any]], box: Any
    ) -> dict[str, Any]:
        node_class = _CLASSES[node.kind]
        kinds = getattr(node_class, "RETURN_TYPES", ())
        names = getattr(node_class, "RETURN_NAMES", kinds)
        outputs = [
            {
                "name": name,
                "type": kind,
                "links": [link[0] for link in links if link[1:3] == [node.id, slot]] or None,
                "slot_index": slot,
            }
            for slot, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
        return {
            "id": node.id, "type": node.kind, **box.as_json(), "flags": {}, "order": order, "mode": 0,
            "inputs": inputs, "outputs": outputs, "title": node.title, "properties": _properties(node),
            "widgets_values": self._widget_values(node),
        }  # fmt: skip

    def _widget_values(self, node: Node) -> list[Any]:
        """By position, with the entries of the editor's own."""
        values: list[Any] = []
        for name, spec in self._declared(node.kind).items():
            if is_widget(spec):
                values.append(node.values[name])
                values += ["fixed"] * extra_entries(name, spec)
        return [*values, "image"] if node.kind == "LoadImage" else values


def _properties(node: Node) -> dict[str, Any]:
    pack = {"cnr_id": _PACK, "ver": pack_version()} if node.kind in NODE_CLASS_MAPPINGS else _CORE
    found: dict[str, Any] = {"Node name for S&R": node.kind, **pack}
    if node.files:
        found["models"] = [{"name": one.name, "url": one.url, "directory": one.directory} for one in node.files]
    return found


def _default(spec: Spec) -> Any:
    kind, options = spec
    if "default" in options:
        return options["default"]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "") if isinstance(kind, str) else ""
