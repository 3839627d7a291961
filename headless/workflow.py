"""Reads a workflow file and brings it into ComfyUI's API format, whichever of the two formats it was saved in.

API format: ``{node id: {"class_type": ..., "inputs": {name: value or [node id, output index]}, "_meta": {...}}}``.
Editor format: what the page saves (``nodes``, ``links``, ...); :mod:`.editor` flattens it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..nodes.file_names import fill_in
from ..pipelines.errors import WorkflowError
from ..pipelines.words import cut, shown
from .documents import Kind, kind_of, read_object
from .editor import flatten
from .inputs import Spec, choices, declared_inputs, is_combo, known_input
from .page_nodes import does_nothing
from .prompt import SHOWN_PROBLEMS, Definitions, Prompt, and_more, node_label, node_title, refuse_unknown


def read_workflow(path: Path) -> dict[str, Any]:
    """Reads a workflow file of either format.

    Raises:
        WorkflowError: no such file, not JSON (with line and column), or not a workflow.
    """
    what = f"Workflow {shown(path.name)}"
    document = read_object(path, _WORKFLOW)
    if not is_editor_format(document) and not _is_api_format(_unwrapped(document)):
        raise WorkflowError(f"{what} is JSON, but not a workflow. {_FORMATS}")
    if _depth(document) > _DEEPEST:
        # what a picture's metadata could not hold is said before the picture is made
        raise WorkflowError(f"{what} is nested too deeply to be a workflow.")
    return document


def _depth(document: Any) -> int:
    """Of lists and objects in each other, as far as it matters."""
    depth, level = 0, [document]
    while level and depth <= _DEEPEST:
        depth += 1
        containers = (value.values() if isinstance(value, dict) else value for value in level)
        level = [inner for values in containers for inner in values if isinstance(inner, dict | list)]
    return depth


def is_editor_format(document: Mapping[str, Any]) -> bool:
    """True for a workflow as the editor saves it, which is also what goes into a picture's ``workflow`` metadata."""
    return isinstance(document.get("nodes"), list)


def to_prompt(document: Mapping[str, Any], definitions: Definitions) -> Prompt:
    """Returns the workflow in API format, as the editor itself would queue it.

    Args:
        document: a workflow of either format, as :func:`read_workflow` returns it; left unchanged.
        definitions: the node classes that can be run.

    Raises:
        WorkflowError: a node's class is unknown (all of them are named), or the file is damaged.
    """
    if is_editor_format(document):
        return flatten(document, definitions)
    prompt = _unwrapped(document)
    if not _is_api_format(prompt):
        raise WorkflowError(f"This is not a workflow. {_FORMATS}")
    prompt = {name: node for name, node in prompt.items() if not does_nothing(node["class_type"], definitions)}
    refuse_unknown(prompt, definitions)
    return {node_id: _copied(node_id, node) for node_id, node in prompt.items()}


def definitions_of(classes: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Definitions of node classes in this process.

    Args:
        classes: class id -> class, as in ``NODE_CLASS_MAPPINGS``.
        names: class id -> display name, as in ``NODE_DISPLAY_NAME_MAPPINGS``; used as the title of untitled nodes.
    """
    return {
        class_id: {
            "input": node_class.INPUT_TYPES(),
            "output": list(getattr(node_class, "RETURN_TYPES", ())),
            "display_name": (names or {}).get(class_id, class_id),
        }
        for class_id, node_class in classes.items()
    }


def fill_in_names(prompt: Prompt, document: Mapping[str, Any]) -> Prompt:
    """The prompt with the save nodes' file names filled in, as the page does before it queues one.

    Args:
        prompt: a workflow in API format; left unchanged.
        document: the workflow that it came from.
    """
    workflow = document if is_editor_format(document) else None
    filled = {}
    for node_id, node in prompt.items():
        prefix = node["inputs"].get("filename_prefix")
        own = {"filename_prefix": fill_in(prefix, prompt, workflow)} if isinstance(prefix, str) else {}
        filled[node_id] = {**node, "inputs": {**node["inputs"], **own}}
    return filled


def apply_sets(prompt: Prompt, sets: Sequence[str], definitions: Definitions) -> Prompt:
    """Returns ``prompt`` with inputs replaced as the command line asks.

    Args:
        prompt: a workflow in API format; left unchanged.
        sets: ``NODE.INPUT=VALUE`` each. NODE is a node id, a class id or a title. VALUE is JSON where it parses as
            JSON, else text; for a text input, and for a choice of a list, it is taken as typed.
        definitions: the node classes that can be run.

    Raises:
        WorkflowError: no such node or input, or more than one node fits.
    """
    changed = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    for item in sets:
        target, equals, text = item.partition("=")
        if not equals or "." not in target:
            raise WorkflowError(
                f"--set {shown(item)} is not understood. Write NODE.INPUT=VALUE, e.g. --set 3.steps=20."
            )
        node_id, name = _find_input(changed, target, definitions)
        spec = declared_inputs(definitions[changed[node_id]["class_type"]]).get(name)
        changed[node_id]["inputs"][name] = _parsed(text, spec)
    return changed


_DEEPEST = 200
_FORMATS = (
    "Expected a workflow saved by ComfyUI's editor (it has a 'nodes' list), or one saved with 'Export (API)' "
    "(every entry has a 'class_type')."
)
_WORKFLOW = Kind(
    "workflow", "A workflow is a .json file saved by ComfyUI.", "Save it from ComfyUI again.", WorkflowError
)


def _unwrapped(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A document may be the body of ``POST /prompt``, which holds the workflow under ``prompt``."""
    inner = document.get("prompt")
    return inner if isinstance(inner, dict) and "class_type" not in inner else document


def _is_api_format(prompt: Mapping[str, Any]) -> bool:
    return bool(prompt) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in prompt.values()
    )


def _copied(node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
    inputs = node.get("inputs", {})
    if not isinstance(inputs, dict):
        raise WorkflowError(f"Node {node_label(node_id, node)}: 'inputs' is a {kind_of(inputs)}, not an object.")
    return {**node, "inputs": {name: _copied_value(value) for name, value in inputs.items()}}


def _copied_value(value: Any) -> Any:
    """Links are copied, with the node's id as text: some tools write it as a number."""
    if isinstance(value, list) and len(value) == 2:
        return [str(value[0]), value[1]] if isinstance(value[0], int) else list(value)
    return value


def _splits(target: str) -> Iterator[tuple[str, str]]:
    """Every way to read ``target`` as node and input: both may have dots in them."""
    at = target.find(".")
    while at >= 0:
        yield target[:at], target[at + 1 :]
        at = target.find(".", at + 1)


def _find_input(prompt: Prompt, target: str, definitions: Definitions) -> tuple[str, str]:
    missing_input: str | None = None
    for node_name, input_name in _splits(target):
        found = _nodes_called(prompt, node_name)
        if not found:
            continue
        if len(found) > 1:
            candidates = "; ".join(_labels(prompt, found))
            raise WorkflowError(
                f"--set {cut(target)}: {len(found)} nodes are called {shown(node_name)}: {candidates}. Use the node's "
                "id."
            )
        node = prompt[found[0]]
        definition = definitions[node["class_type"]]
        if input_name in node["inputs"] or known_input(definition, input_name):
            return found[0], input_name
        missing_input = missing_input or (
            f"--set {cut(target)}: node {node_label(found[0], node)} ({node['class_type']}) has no input "
            f"{shown(input_name)}. "
            "It has: " + (", ".join(declared_inputs(definition)) or "none") + "."
        )
    if missing_input is not None:
        raise WorkflowError(missing_input)
    nodes = "; ".join(_labels(prompt, list(prompt)))
    raise WorkflowError(f"--set {cut(target)}: no node has that id, class or title. The workflow has: {nodes}.")


def _labels(prompt: Prompt, node_ids: Sequence[str]) -> list[str]:
    labels = [node_label(node_id, prompt[node_id]) for node_id in node_ids[:SHOWN_PROBLEMS]]
    return and_more(labels, len(node_ids))


def _nodes_called(prompt: Prompt, name: str) -> list[str]:
    if name in prompt:
        return [name]
    return [node_id for node_id, node in prompt.items() if name in (node["class_type"], node_title(node))]


def _parsed(text: str, spec: Spec | None) -> Any:
    if spec is not None and (spec[0] == "STRING" or (is_combo(spec) and text in choices(spec))):
        return text
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> Any:
    # Python's parser takes NaN and Infinity, which are not JSON and which a server would refuse.
    raise ValueError(name)
