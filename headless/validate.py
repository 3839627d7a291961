"""Checks a workflow in API format before any node runs, as ComfyUI does.

Left to the nodes: the range of numbers, because this pack's nodes check their own with better words.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..pipelines.errors import WorkflowError
from .inputs import Spec, choices, declared_inputs, is_combo
from .prompt import Prompt, node_label, refuse_unknown

_CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_SHOWN_CHOICES = 10


def execution_order(prompt: Prompt, classes: Mapping[str, Any]) -> list[str]:
    """The output nodes and all that they need, each after what it needs.

    Raises:
        WorkflowError: there is no output node, a link is damaged or leads nowhere, or nodes need each other.
    """
    refuse_unknown(prompt, classes)
    waiting = [node_id for node_id, node in prompt.items() if getattr(_class(node, classes), "OUTPUT_NODE", False)]
    if not waiting:
        raise WorkflowError("The workflow has no output node, so nothing would run. Add one, e.g. SaveImage.")
    needs: dict[str, list[str]] = {}
    while waiting:
        node_id = waiting.pop()
        if node_id not in needs:
            needs[node_id] = _origins(node_id, prompt, classes)
            waiting.extend(needs[node_id])
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        round_trip = " -> ".join(node_label(node_id, prompt[node_id]) for node_id in error.args[1])
        raise WorkflowError(f"These nodes need each other in a circle: {round_trip}. Cut one of the links.") from None


def validate_prompt(prompt: Prompt, order: Sequence[str], classes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns, by node id, the inputs that are values rather than links, each converted to its type.

    Args:
        prompt: a workflow in API format.
        order: the nodes that will run, see :func:`execution_order`.
        classes: class id -> node class.

    Raises:
        WorkflowError: inputs are missing or do not fit; all of them are listed.
    """
    problems: list[str] = []
    constants: dict[str, dict[str, Any]] = {}
    for node_id in order:
        values, found = _check_node(prompt[node_id], prompt, classes)
        constants[node_id] = values
        problems += [f"node {node_label(node_id, prompt[node_id])}: {problem}" for problem in found]
    if problems:
        raise WorkflowError("The workflow cannot run:\n" + "\n".join(f"- {problem}" for problem in problems))
    return constants


def required_or_optional(node_class: Any) -> dict[str, Spec]:
    """The class's declared inputs, hidden ones left out."""
    return declared_inputs({"input": node_class.INPUT_TYPES()})


def _class(node: Mapping[str, Any], classes: Mapping[str, Any]) -> Any:
    node_class = classes[node["class_type"]]
    if getattr(node_class, "INPUT_IS_LIST", False):
        raise WorkflowError(
            f"Node class {node['class_type']!r} takes whole lists, which only ComfyUI itself can do. Use --server URL."
        )
    return node_class


def _origins(node_id: str, prompt: Prompt, classes: Mapping[str, Any]) -> list[str]:
    node = prompt[node_id]
    declared = required_or_optional(_class(node, classes))
    origins: list[str] = []
    for name, value in node["inputs"].items():
        if name not in declared or not isinstance(value, list):
            continue
        where = f"Node {node_label(node_id, node)}, input {name!r}"
        if len(value) != 2 or not isinstance(value[0], str) or type(value[1]) is not int:
            raise WorkflowError(f"{where}: {value!r} is not a link; a link is [node id, output index].")
        if value[0] not in prompt:
            raise WorkflowError(f"{where}: it is linked to node {value[0]}, which is not in the workflow.")
        origin = prompt[value[0]]
        count = len(_class(origin, classes).RETURN_TYPES)
        if not 0 <= value[1] < count:
            raise WorkflowError(
                f"{where}: it is linked to output {value[1]} of node {node_label(value[0], origin)}, which has "
                f"{count} output{'' if count == 1 else 's'}, counted from 0."
            )
        origins.append(value[0])
    return origins


def _check_node(
    node: Mapping[str, Any], prompt: Prompt, classes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    node_class = classes[node["class_type"]]
    required = node_class.INPUT_TYPES().get("required") or {}
    own_check = getattr(node_class, "VALIDATE_INPUTS", None)
    parameters = inspect.signature(own_check).parameters if own_check else {}
    unchecked = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    values: dict[str, Any] = {}
    links: dict[str, str | list[str]] = {}
    problems: list[str] = []
    for name, spec in required_or_optional(node_class).items():
        if name not in node["inputs"]:
            if name in required:
                problems.append(f"input {name!r} is missing. Connect it, or give it a value.")
            continue
        given = node["inputs"][name]
        if isinstance(given, list):
            links[name] = classes[prompt[given[0]]["class_type"]].RETURN_TYPES[given[1]]
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
            problems.append(f"input {name!r} takes {_type_name(spec[0])}, not {value!r}.")
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
    shown = ", ".join(repr(entry) for entry in offered[:_SHOWN_CHOICES]) or "nothing"
    more = f", and {len(offered) - _SHOWN_CHOICES} more" if len(offered) > _SHOWN_CHOICES else ""
    return [f"input {name!r}: {', '.join(map(repr, wrong))} is not one of its choices. It offers: {shown}{more}."]


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
