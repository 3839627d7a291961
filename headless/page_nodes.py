"""Nodes of ComfyUI's page that no server runs: its own and those of other packs, and what each stands for.

Read in the packs' own page scripts: KJNodes, Easy-Use, KayTool, Pixaroma and IXIWORKS (Set and Get), rgthree, pysssss'
Custom-Scripts, and Use Everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import WorkflowError
from .inputs import declared_inputs, is_widget
from .saved_graph import SUBGRAPH_OUTPUT, Graph, Link, Node, is_off, label, slots

if TYPE_CHECKING:
    from .prompt import Definitions

PRIMITIVE = "PrimitiveNode"
_NOTES = ("Note", "MarkdownNote")
# each Get node, and the Set node whose value it gives on; no pack's Get sees another pack's Set
SETTER_OF = {
    "GetNode": "SetNode",
    "easy getNode": "easy setNode",
    "KayGetNode": "KaySetNode",
    "PixaromaGetNode": "PixaromaSetNode",
    "IXI_GetNode": "IXI_SetNode",
}
# they give on what comes into their first input
_WIRES = frozenset(("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss", *SETTER_OF.values()))
# links lead into them to say which nodes they switch; nothing runs in them
_SWITCHES = frozenset(
    f"{name} (rgthree)"
    for name in (
        "Fast Muter", "Fast Bypasser", "Fast Groups Muter", "Fast Groups Bypasser", "Fast Actions Button",
        "Mute / Bypass Repeater", "Mute / Bypass Relay", "Node Mode Relay", "Node Mode Repeater", "Node Collector",
        "Node Combiner", "Random Unmuter", "Label", "Bookmark",
    )
)  # fmt: skip
# what comes into them goes to every input of its type that has no link
_BROADCASTERS = frozenset(("Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"))
_CUSTOM_COMBO = "CustomCombo"
_PAGE_ONLY = frozenset((*_NOTES, *_WIRES, *SETTER_OF, *_SWITCHES, *_BROADCASTERS, PRIMITIVE))


def is_page_only(kind: str, known: Collection[str]) -> bool:
    """True for a node that a server has no class for, and needs none."""
    return kind in _PAGE_ONLY and kind not in known


def is_wire(kind: str) -> bool:
    return kind in _WIRES


def does_nothing(kind: str, known: Collection[str]) -> bool:
    """True for a node that an API prompt may hold although running it does nothing: its page script did its work."""
    return kind in _BROADCASTERS and kind not in known


def wire_name(node: Node) -> object:
    """What a Set or Get node is called by: its first widget."""
    values = node.get("widgets_values") or [None]
    return next(iter(values.values()), None) if isinstance(values, Mapping) else values[0]


def broadcast_links(graph: Graph, definitions: Definitions) -> Iterator[tuple[str, str | int, Link]]:
    """What Use Everywhere feeds without a line, as its page script noted it in the file: node, input, link.

    The input is a name, or of the subgraph's own outputs a number. Where both are there, such a link counts before a
    line: the line then comes from a node that is muted or bypassed.

    Raises:
        WorkflowError: a broadcaster is at work, and the file does not say what it feeds.
    """
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    at_work = {
        node_id: node
        for node_id, node in nodes.items()
        if not is_off(node)
        and (does_nothing(node["type"], definitions) or (node.get("properties") or {}).get("ue_convert"))
    }
    noted = (graph.get("extra") or {}).get("ue_links")
    for node_id, node in at_work.items():
        if not isinstance(noted, list) and any(slot.get("link") is not None for slot in slots(node, "inputs")):
            raise WorkflowError(
                f"Node {label(node_id, node)} feeds inputs that it has no line to, and the file does not say which. "
                "Open the workflow in ComfyUI with the pack 'Use Everywhere' and save it again."
            )
    names: dict[str, list[str]] = {}
    for entry in noted if at_work and isinstance(noted, list) else ():
        origin, target, slot = str(entry["upstream"]), str(entry["downstream"]), int(entry["downstream_slot"])
        link = Link(origin, int(entry["upstream_slot"]), target, slot)
        if str(entry.get("controller")) not in at_work:
            continue
        if target == SUBGRAPH_OUTPUT:
            yield target, slot, link
        elif target in nodes:
            inputs = names.setdefault(target, _page_inputs(nodes[target], definitions))
            if not 0 <= slot < len(inputs):
                raise WorkflowError(
                    f"Node {label(target, nodes[target])} has no input {slot}, but 'Use Everywhere' feeds it. Open the "
                    "workflow in ComfyUI and save it again."
                )
            yield target, inputs[slot], link


def _page_inputs(node: Node, definitions: Definitions) -> list[str]:
    """A node's inputs in the page's order. The file leaves fields without a link out; they come last, as declared."""
    saved = slots(node, "inputs")
    sockets = [str(slot.get("name")) for slot in saved if not slot.get("widget")]
    declared = declared_inputs(definitions.get(node["type"], {}))
    fields = [name for name, spec in declared.items() if is_widget(spec)]
    own = [str(slot.get("name")) for slot in saved if slot.get("widget")]
    return [*sockets, *(fields or own)]


def page_fields(node: Node, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the page's script adds to a node of core's: the server takes them, and does not declare them.

    Args:
        node: as saved.
        inputs: of the node in API format, without them.
    """
    stored = node.get("widgets_values")
    if node["type"] != _CUSTOM_COMBO or not isinstance(stored, list) or len(stored) < 3:
        return {}
    # the choice, its number, and what can be chosen
    offered = stored[2:]
    index = offered.index(inputs.get("choice")) if inputs.get("choice") in offered else stored[1]
    return {"index": index} | {f"option{number}": option for number, option in enumerate(offered, 1)}
