"""Runs a workflow in API format in this process, with ComfyUI's rules of what is valid and what is passed to a node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..pipelines.errors import AITKError, WorkflowError
from .prompt import Prompt, node_label
from .validate import Declared, execution_order, validate_prompt


@dataclass(frozen=True)
class RunResult:
    """What a run made; everything by node id, only of nodes that ran."""

    results: dict[str, tuple[Any, ...]]
    """The nodes' outputs."""
    outputs: dict[str, dict[str, Any]]
    """What output nodes show, e.g. ``{"images": [{"filename": ..., "subfolder": ..., "type": "output"}]}``."""
    seconds: float
    """How long all of it took."""


def run_prompt(prompt: Prompt, classes: Mapping[str, Any], *, extra_pnginfo: dict[str, Any] | None = None) -> RunResult:
    """Runs the output nodes and what they need, each node once, in torch's inference mode as ComfyUI does.

    Args:
        prompt: a workflow in API format; left unchanged.
        classes: class id -> node class.
        extra_pnginfo: what nodes that save pictures write into them beside the prompt, e.g. ``{"workflow": {...}}``.

    Raises:
        WorkflowError: the workflow is not valid (all that is wrong is listed), or a node failed with one of this
            pack's errors, which is then the cause. Any other exception of a node comes through as it is.
    """
    start = time.monotonic()
    declared = Declared(classes)
    order, constants = check_prompt(prompt, declared)
    # only now: a workflow that is refused waits for no torch
    import torch

    results: dict[str, tuple[Any, ...]] = {}
    outputs: dict[str, dict[str, Any]] = {}
    for node_id in order:
        node = prompt[node_id]
        node_class = classes[node["class_type"]]
        arguments = dict(constants[node_id])
        specs = declared.specs(node["class_type"])
        for name, value in node["inputs"].items():
            if name in specs and isinstance(value, list):
                arguments[name] = results[value[0]][value[1]]
        hidden = {"PROMPT": prompt, "EXTRA_PNGINFO": extra_pnginfo, "UNIQUE_ID": node_id}
        for name, kind in declared.group(node["class_type"], "hidden").items():
            if kind in hidden:
                arguments[name] = hidden[kind]
        # as ComfyUI calls nodes (its execution.py); around calls alone, so that the caller's own mode stays
        with torch.inference_mode():
            returned = _call(node_id, node, node_class, arguments)
        if isinstance(returned, dict):
            if returned.get("ui"):
                outputs[node_id] = returned["ui"]
            returned = returned.get("result")
        results[node_id] = tuple(returned or ())
    return RunResult(results, outputs, time.monotonic() - start)


def check_prompt(prompt: Prompt, declared: Declared) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The nodes that run, in order, and of each the inputs that are values; nothing is run.

    Raises:
        WorkflowError: the workflow is not valid; all that is wrong is listed.
    """
    order = execution_order(prompt, declared)
    return order, validate_prompt(prompt, order, declared)


def _call(node_id: str, node: Mapping[str, Any], node_class: Any, arguments: dict[str, Any]) -> Any:
    try:
        return getattr(node_class(), node_class.FUNCTION)(**arguments)
    except AITKError as error:
        raise WorkflowError(f"Node {node_label(node_id, node)}: {error}") from error
    except Exception as error:
        error.add_note(f"This happened in node {node_label(node_id, node)}.")
        raise
