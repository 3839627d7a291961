"""Checks a workflow in API format before any node runs, as ComfyUI does.

Left to the nodes: the range of numbers, because this pack's nodes check their own with better words.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import WorkflowError
from ..pipelines.words import cut, shown
from .inputs import Spec, choices, declared_inputs, is_combo
from .prompt import and_more, node_label, refuse_unknown

if TYPE_CHECKING:
    from .prompt import Prompt


@dataclass
class Declared:
    """What the classes of a run declare, each asked once: the answer may be a list of all files of a folder.

    Attributes:
        classes: class id -> node class.
    """

    classes: Mapping[str, Any]
    _inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _specs: dict[str, dict[str, Spec]] = field(default_factory=dict)

    def group(self, class_type: str, name: str) -> Mapping[str, Any]:
        """The inputs of a group: ``required``, ``optional`` or ``hidden``."""
        if class_type not in self._inputs:
            self._inputs[class_type] = self.classes[class_type].INPUT_TYPES()
        return self._inputs[class_type].get(name) or {}

    def specs(self, class_type: str) -> dict[str, Spec]:
        """The inputs that a workflow gives: hidden ones are left out."""
        if class_type not in self._specs:
            groups = {name: self.group(class_type, name) for name in ("required", "optional")}
            self._specs[class_type] = declared_inputs({"input": groups})
        return self._specs[class_type]


_CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_SHOWN_CHOICES = 10


def execution_order(prompt: Prompt, declared: Declared) -> list[str]:
    """The output nodes and all that they need, each after what it needs.

    Raises:
        WorkflowError: there is no output node, a link is damaged or leads nowhere, or nodes need each other.
    """
    refuse_unknown(prompt, declared.classes)
    waiting = [node_id for node_id, node in prompt.items() if getattr(_class(node, declared), "OUTPUT_NODE", False)]
    if not waiting:
        raise WorkflowError("The workflow has no output node, so nothing would run. Add one, e.g. SaveImage.")
    needs: dict[str, list[str]] = {}
    while waiting:
        node_id = waiting.pop()
        if node_id not in needs:
            needs[node_id] = _origins(node_id, prompt, declared)
            waiting.extend(needs[node_id])
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = error.args[1]
        labels = [node_label(node_id, prompt[node_id]) for node_id in circle[:_SHOWN_CHOICES]]
        round_trip = " -> ".join(and_more(labels, len(circle)))
        raise WorkflowError(f"These nodes need each other in a circle: {round_trip}. Cut one of the links.") from None


def validate_prompt(prompt: Prompt, order: Sequence[str], declared: Declared) -> dict[str, dict[str, Any]]:
    """Returns, by node id, the inputs that are values rather than links, each converted to its type.

    Args:
        prompt: a workflow in API format.
        order: the nodes that will run, see :func:`execution_order`.
        declared: what the classes of the run declare.

    Raises:
        WorkflowError: inputs are missing or do not fit; the first of them are listed.
    """
    problems: list[str] = []
    constants: dict[str, dict[str, Any]] = {}
    for node_id in order:
        values, found = _check_node(prompt[node_id], prompt, declared)
        constants[node_id] = values
        problems += [f"node {node_label(node_id, prompt[node_id])}: {problem}" for problem in found]
    if problems:
        listed = and_more(problems, len(problems))
        raise WorkflowError("The workflow cannot run:\n" + "\n".join(f"- {problem}" for problem in listed))
    return constants


def _class(node: Mapping[str, Any], declared: Declared) -> Any:
    node_class = declared.classes[node["class_type"]]
    if getattr(node_class, "INPUT_IS_LIST", False):
        raise WorkflowError(
            f"Node class {shown(node['class_type'])} takes whole lists, which only ComfyUI itself can do. Use --server "
            "URL."
        )
    return node_class


def _origins(node_id: str, prompt: Prompt, declared: Declared) -> list[str]:
    node = prompt[node_id]
    _class(node, declared)
    specs = declared.specs(node["class_type"])
    origins: list[str] = []
    for name, value in node["inputs"].items():
        if name not in specs or not isinstance(value, list):
            continue
        where = f"Node {node_label(node_id, node)}, input {name!r}"
        if len(value) != 2 or not isinstance(value[0], str) or type(value[1]) is not int:
            raise WorkflowError(f"{where}: {cut(repr(value[:3]))} is not a link; a link is [node id, output index].")
        if value[0] not in prompt:
            raise WorkflowError(f"{where}: it is linked to node {cut(value[0])}, which is not in the workflow.")
        origin = prompt[value[0]]
        count = len(_class(origin, declared).RETURN_TYPES)
        if not 0 <= value[1] < count:
            raise WorkflowError(
                f"{where}: it is linked to output {shown(value[1])} of node {node_label(value[0], origin)}, which has "
                f"{count} output{'' if count == 1 else 's'}, counted from 0."
            )
        origins.append(value[0])
    return origins


def _check_node(node: Mapping[str, Any], prompt: Prompt, declared: Declared) -> tuple[dict[str, Any], list[str]]:
    node_class = declared.classes[node["class_type"]]
    required = declared.group(node["class_type"], "required")
    own_check = getattr(node_class, "VALIDATE_INPUTS", None)
    parameters = inspect.signature(own_check).parameters if own_check else {}
    unchecked = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    values: dict[str, Any] = {}
    links: dict[str, str | list[str]] = {}
    problems: list[str] = []
    for name, spec in declared.specs(node["class_type"]).items():
        if name not in node["inputs"]:
            if name in required:
                problems.append(f"input {name!r} is missing. Connect it, or give it a value.")
            continue
        given = node["inputs"][name]
        if isinstance(given, list):
            links[name] = declared.classes[prompt[given[0]]["class_type"]].RETURN_TYPES[given[1]]
            if "input_types" not in parameters and not _types_fit(links[name], spec[0]):
                origin = node_label(given[0], prompt[given[0]])
                problems.append(
                    f"input {name!r} takes {_type_name(spec[0])}, but is linked to output {given[1]} of node {origin}, "
                    f"which is {_type_name(links[name])}."
                )
            continue
        value = given["__value__"] if isinstance(given, dict) and "__value__" in given else given
        try:
            values[name] = _CONVERSIONS[spec[0]](value) if _convertible(spec[0]) else value
        except (OverflowError, TypeError, ValueError):
            problems.append(f"input {name!r} takes {_type_name(spec[0])}, not {shown(value)}.")
            continue
        if is_combo(spec) and name not in parameters and not unchecked:
            problems += _check_choice(name, values[name], spec)
    if own_check and not problems:
        problems += _own_problems(own_check, parameters, values, links, unchecked)
    return values, problems


def _convertible(kind: Any) -> bool:
    return isinstance(kind, str) and kind in _CONVERSIONS


def _check_choice(name: str, value: Any, spec: Spec) -> list[str]:
    offered = choices(spec)
    chosen = value if isinstance(value, list) and spec[1].get("multiselect") else [value]
    wrong = [entry for entry in chosen if entry not in offered]
    if not wrong:
        return []
    some = ", ".join(shown(entry) for entry in offered[:_SHOWN_CHOICES]) or "nothing"
    more = f", and {len(offered) - _SHOWN_CHOICES} more" if len(offered) > _SHOWN_CHOICES else ""
    refused = ", ".join(shown(entry) for entry in wrong[:_SHOWN_CHOICES])
    return [f"input {name!r}: {refused} is not one of its choices. It offers: {some}{more}."]


def _own_problems(
    check: Any,
    parameters: Mapping[str, inspect.Parameter],
    values: Mapping[str, Any],
    links: Mapping[str, Any],
    takes_all: bool,
) -> list[str]:
    """What the class itself says about its inputs. A linked one has no value yet and arrives as None."""
    given = {**dict.fromkeys(links), **values}
    arguments = {name: value for name, value in given.items() if takes_all or name in parameters}
    if "input_types" in parameters:
        arguments["input_types"] = dict(links)
    verdict = check(**arguments)
    if verdict is True:
        return []
    names = ", ".join(repr(name) for name in arguments if name != "input_types")
    return [verdict if isinstance(verdict, str) else f"the node does not take these values of {names}."]


def _types_fit(received: Any, wanted: Any) -> bool:
    """True if an output of type ``received`` may feed an input of type ``wanted``, by ComfyUI's rules."""
    if received == wanted or "*" in (received, wanted):
        return True
    if isinstance(received, list) and wanted == "COMBO":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    given, taken = ({kind.strip() for kind in kinds.split(",")} for kinds in (received, wanted))
    return "*" in given | taken or bool(given & taken)


def _type_name(kind: Any) -> str:
    return "a choice" if isinstance(kind, list) else str(kind)
