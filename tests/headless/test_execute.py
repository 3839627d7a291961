"""Running a workflow in API format in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.pipelines.errors import FileError, WorkflowError


def node_class(
    inputs: dict[str, Any], outputs: tuple[str, ...], function: Any, *, shows: bool = False, **more: Any
) -> type:
    """A node class with these inputs and outputs that calls ``function``."""
    members = {
        "INPUT_TYPES": classmethod(lambda cls: inputs),
        "RETURN_TYPES": outputs,
        "FUNCTION": "run",
        "OUTPUT_NODE": shows,
        "run": lambda self, **arguments: function(**arguments),
    }
    return type("Node", (), members | more)


def fail(**arguments: Any) -> Any:
    raise FileError("the file is gone")


def crash(**arguments: Any) -> Any:
    raise ValueError("a bug")


def show(**arguments: Any) -> dict[str, Any]:
    return {"ui": arguments, "result": (arguments.get("a"),)}


ANYTHING = {"required": {"a": ("*", {})}, "optional": {"b": ("*", {})}}
CLASSES: dict[str, Any] = {
    "Number": node_class({"required": {"value": ("INT", {})}}, ("INT",), lambda value: (value,)),
    "Word": node_class({"required": {"value": ("STRING", {})}}, ("STRING",), lambda value: (value,)),
    "Either": node_class({"required": {"value": ("INT,FLOAT", {})}}, ("INT,FLOAT",), lambda value: (value,)),
    "Show": node_class(ANYTHING, ("*",), show, shows=True),
    "Typed": node_class(
        {
            "required": {"i": ("INT", {"max": 5}), "f": ("FLOAT", {}), "s": ("STRING", {}), "b": ("BOOLEAN", {})},
            "optional": {"old": (["x", "y"], {}), "new": ("COMBO", {"options": ["x", "y"]}), "list": ("*", {})},
            "hidden": {"prompt": "PROMPT", "extra": "EXTRA_PNGINFO", "me": "UNIQUE_ID"},
        },
        (),
        show,
        shows=True,
    ),
    "Fails": node_class(ANYTHING, ("INT",), fail, shows=True),
    "Crashes": node_class(ANYTHING, ("INT",), crash, shows=True),
    "Lists": node_class(ANYTHING, ("INT",), show, shows=True, INPUT_IS_LIST=True),
    "Picky": node_class(
        {"required": {"file": (["there"], {}), "mode": (["m"], {})}},
        (),
        show,
        shows=True,
        VALIDATE_INPUTS=classmethod(lambda cls, file: True if file in (None, "elsewhere") else f"no file {file}"),
    ),
}


def number(value: Any = 1) -> dict[str, Any]:
    return {"class_type": "Number", "inputs": {"value": value}}


def shown(a: Any, **more: Any) -> dict[str, Any]:
    return {"class_type": "Show", "inputs": {"a": a, **more}}


def test_needed_nodes_run_once_in_order() -> None:
    calls: list[int] = []

    def count(value: int) -> tuple[int]:
        calls.append(value)
        return (len(calls),)

    classes = {**CLASSES, "Number": node_class({"required": {"value": ("INT", {})}}, ("INT",), count)}
    prompt = {
        "9": shown(["2", 0], b=["1", 0]),
        "2": number(["1", 0]),
        "1": number(7),
        "5": number(99),  # nothing needs it
        "8": shown(["1", 0]),
    }
    result = run_prompt(prompt, classes)
    assert calls == [7, 1]
    assert result.outputs == {"9": {"a": 2, "b": 1}, "8": {"a": 1}}
    assert result.results == {"1": (1,), "2": (2,), "9": (2,), "8": (1,)}


def test_values_are_converted_and_hidden_inputs_given() -> None:
    inputs = {"i": "3", "f": 2, "s": 5, "b": 0, "old": "x", "new": "y", "list": {"__value__": [1, 2]}, "unknown": 1}
    prompt = {"1": {"class_type": "Typed", "inputs": inputs}}
    (got,) = run_prompt(prompt, CLASSES, extra_pnginfo={"workflow": {}}).outputs.values()
    expected = {"i": 3, "f": 2.0, "s": "5", "b": False, "old": "x", "new": "y", "list": [1, 2]}
    assert got == {**expected, "prompt": prompt, "extra": {"workflow": {}}, "me": "1"}
    assert [type(got[name]) for name in "ifsb"] == [int, float, str, bool]


def test_nodes_run_in_inference_mode_and_the_caller_does_not() -> None:
    made = node_class({"required": {}}, ("*",), lambda: (torch.ones(1),))
    prompt = {"1": {"class_type": "Made", "inputs": {}}, "2": shown(["1", 0])}
    (tensor,) = run_prompt(prompt, {**CLASSES, "Made": made}).results["1"]
    assert tensor.is_inference()
    assert not torch.is_inference_mode_enabled()


TYPED = {"i": 1, "f": 1.0, "s": "", "b": True}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"1": number()}, ["no output node"]),
        ({"1": {"class_type": "Nope", "inputs": {}}, "2": shown(1)}, ["'Nope'", "node 1"]),
        ({"1": shown(["7", 0])}, ["1 (Show)", "'a'", "node 7"]),
        ({"1": shown(["2", 1]), "2": number()}, ["1 (Show)", "output 1", "2 (Number)", "1 output"]),
        ({"1": shown(["2"]), "2": number()}, ["1 (Show)", "['2']", "not a link"]),
        ({"1": shown(["2", 0]), "2": number(["3", 0]), "3": number(["2", 0])}, ["2 (Number)", "3 (Number)", "circle"]),
        ({"1": {"class_type": "Show", "inputs": {"b": 1}}}, ["1 (Show)", "'a' is missing"]),
        (
            {"1": shown(["2", 0]), "2": number(["3", 0]), "3": {"class_type": "Word", "inputs": {"value": "x"}}},
            ["2 (Number)", "'value' takes INT", "3 (Word)", "STRING"],
        ),
        (
            {"1": {"class_type": "Typed", "inputs": {**TYPED, "i": "x", "old": "z", "new": "w"}}},
            ["'i' takes INT, not 'x'", "'old': 'z'", "'x', 'y'", "'new': 'w'"],
        ),
        ({"1": {"class_type": "Lists", "inputs": {"a": 1}}}, ["'Lists'", "--server"]),
        ({"1": {"class_type": "Picky", "inputs": {"file": "there", "mode": "m"}}}, ["1 (Picky)", "no file there"]),
        ({"1": {"class_type": "Picky", "inputs": {"file": "elsewhere", "mode": "n"}}}, ["'mode': 'n'"]),
    ],
)
def test_what_is_wrong_is_named(prompt: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(WorkflowError) as error:
        run_prompt(prompt, CLASSES)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "prompt",
    [
        {"1": shown(["2", 0]), "2": {"class_type": "Either", "inputs": {"value": ["3", 0]}}, "3": number()},
        {"1": shown(["2", 0]), "2": number(["3", 0]), "3": {"class_type": "Either", "inputs": {"value": 1}}},
        {"1": {"class_type": "Typed", "inputs": {**TYPED, "i": 99}}},  # ranges are the nodes' own business
        {"1": {"class_type": "Picky", "inputs": {"file": "elsewhere", "mode": "m"}}},
        {"1": {"class_type": "Picky", "inputs": {"file": ["2", 0], "mode": "m"}}, "2": shown("elsewhere")},
    ],
)
def test_what_comfyui_accepts_runs(prompt: dict[str, Any]) -> None:
    assert "1" in run_prompt(prompt, CLASSES).outputs


def test_a_class_is_asked_once_what_it_takes() -> None:
    """A loader's answer is a list of all files of its folders."""
    asked: list[int] = []

    def takes(cls: type) -> dict[str, Any]:
        asked.append(1)
        return ANYTHING

    nodes = {"Show": node_class(ANYTHING, ("*",), show, shows=True)}
    nodes["Show"].INPUT_TYPES = classmethod(takes)
    assert len(run_prompt({str(n): shown(n) for n in range(50)}, nodes).outputs) == 50
    assert len(asked) == 1


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "prompt",
    [
        {str(n): {"class_type": "Show", "inputs": {}} for n in range(5000)},
        {str(n): shown([str((n + 1) % 5000), 0]) for n in range(5000)},
        {str(n): {"class_type": "Nope", "inputs": {}} for n in range(5000)},
        {LONG: {"class_type": "Show", "inputs": {}, "_meta": {"title": LONG}}},
        {"1": {"class_type": LONG, "inputs": {}}},
        {"1": shown([LONG, 0])},
        {"1": shown([LONG] * 3)},
        {"1": shown(["1", 10**6000])},
        {"1": {"class_type": "Typed", "inputs": {**TYPED, "i": LONG, "old": LONG, "new": [LONG]}}},
        {"1": {"class_type": "Typed", "inputs": {**TYPED, "f": 10**6000, "s": 10**6000}}},
    ],
    ids=["many-missing", "long-circle", "many-unknown", "id", "class", "origin", "link", "output", "values", "numbers"],
)
def test_a_message_is_bounded(prompt: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError) as error:
        run_prompt(prompt, CLASSES)
    assert 20 < len(str(error.value)) < 4000


def test_a_failing_node_is_named() -> None:
    prompt = {"4": {"class_type": "Fails", "inputs": {"a": 1}, "_meta": {"title": "My node"}}}
    with pytest.raises(WorkflowError, match=r"Node 4 \(My node\): the file is gone") as error:
        run_prompt(prompt, CLASSES)
    assert isinstance(error.value.__cause__, FileError)


def test_a_bug_in_a_node_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="a bug") as error:
        run_prompt({"4": {"class_type": "Crashes", "inputs": {"a": 1}}}, CLASSES)
    assert error.value.__notes__ == ["This happened in node 4 (Crashes)."]
