"""From a workflow file to ComfyUI's API format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.workflow import apply_sets, definitions_of, read_workflow, to_prompt
from comfyui_aitk.pipelines.errors import WorkflowError
from hypothesis import given
from hypothesis import strategies as st

EXPORT = json.loads((Path(__file__).parent / "editor_export.json").read_text(encoding="utf-8"))


class Pass:
    """Gives on what it gets."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {"forceInput": True})}}

    def run(self, number: int) -> tuple[int]:
        return (number,)


class Sampler:
    """Shows what it got; its seed has the editor's 'control after generate' behind it."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"default": 42}),
                "steps": ("INT", {"default": 25}),
                "prompt": ("STRING", {}),
                "recipe": (["one", "2"], {}),
            },
            "optional": {"scale": ("FLOAT", {"default": 4.0})},
        }

    def run(self, **inputs: Any) -> dict[str, Any]:
        return {"ui": inputs, "result": (inputs["steps"],)}


class Source:
    """One number."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {})}}

    def run(self, value: int) -> tuple[int]:
        return (value,)


CLASSES: dict[str, Any] = {"Pass": Pass, "Sampler": Sampler, "Source": Source}
DEFINITIONS = definitions_of(CLASSES, {"Sampler": "The Sampler"})
SAMPLER_INPUTS = {"seed": 7, "steps": 20, "prompt": "a cat", "recipe": "2", "scale": 3.5}


def editor(*nodes: dict[str, Any], links: list[Any] | None = None) -> dict[str, Any]:
    return {"nodes": [{"mode": 0, **node} for node in nodes], "links": links or []}


def api(**nodes: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("n"): node for name, node in nodes.items()}


def test_the_editor_exports_the_same() -> None:
    """Reroutes, primitives, bypassed and muted nodes, notes, a subgraph used twice: as the real editor does it."""
    before = copy.deepcopy(EXPORT["workflow"])
    assert to_prompt(EXPORT["workflow"], EXPORT["definitions"]) == EXPORT["prompt"]
    assert EXPORT["workflow"] == before


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([7, "randomize", 20, "a cat", "2", 3.5], SAMPLER_INPUTS),
        ([7, "randomize", 20, "a cat", "2", 3.5, "left over"], SAMPLER_INPUTS),
        (dict(SAMPLER_INPUTS), SAMPLER_INPUTS),
        ([7, "fixed", 20], {"seed": 7, "steps": 20, "prompt": "", "recipe": "one", "scale": 4.0}),
        (None, {"seed": 42, "steps": 25, "prompt": "", "recipe": "one", "scale": 4.0}),
    ],
)
def test_widget_values(stored: Any, expected: dict[str, Any]) -> None:
    prompt = to_prompt(editor({"id": 1, "type": "Sampler", "widgets_values": stored}), DEFINITIONS)
    assert prompt == {"1": {"class_type": "Sampler", "inputs": expected, "_meta": {"title": "The Sampler"}}}


def test_links_as_objects_and_ids_as_text() -> None:
    link = {"id": 5, "origin_id": "a", "origin_slot": 0, "target_id": "b", "target_slot": 0, "type": "INT"}
    document = editor(
        {"id": "a", "type": "Source", "widgets_values": [3], "outputs": [{"type": "INT"}]},
        {"id": "b", "type": "Pass", "inputs": [{"name": "number", "type": "INT", "link": 5}]},
        links=[link],
    )
    assert to_prompt(document, DEFINITIONS)["b"]["inputs"] == {"number": ["a", 0]}


def test_api_format_is_kept() -> None:
    prompt = {
        "1": {"class_type": "Source", "inputs": {"value": 3}},
        "2": {"class_type": "Pass", "inputs": {"number": [1, 0]}},
    }
    converted = to_prompt({"prompt": prompt, "client_id": "x"}, DEFINITIONS)
    assert converted == {**prompt, "2": {"class_type": "Pass", "inputs": {"number": ["1", 0]}}}
    assert prompt["2"]["inputs"]["number"] == [1, 0]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            editor(
                {"id": 1, "type": "Foo", "title": "My foo", "properties": {"cnr_id": "foo-pack"}},
                {"id": 2, "type": "Bar"},
                {"id": 3, "type": "Baz", "mode": 2},
            ),
            ["'Foo' (node 1, 'My foo', of the pack 'foo-pack')", "'Bar' (node 2", "Sampler", "--server"],
        ),
        ({"7": {"class_type": "Foo", "inputs": {}}}, ["'Foo' (node 7"]),
        (editor({"id": 1, "type": "workflow>Mine"}), ["group node 'Mine'", "Export (API)"]),
        (editor({"id": 1, "type": "Pass", "inputs": [{"name": "number", "link": 9}]}), ["node 1", "'number'", " 9 "]),
        (editor({"type": "Pass"}), ["damaged", "'id'"]),
        (
            editor(
                {"id": 1, "type": "Reroute", "inputs": [{"type": "*", "link": 1}]},
                {"id": 2, "type": "Pass", "inputs": [{"name": "number", "type": "INT", "link": 2}]},
                links=[[1, 1, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "INT"]],
            ),
            ["circle", "node 1"],
        ),
        ({"1": {"class_type": "Pass", "inputs": []}}, ["node 1", "list"]),
    ],
    ids=["unknown", "unknown-api", "group", "lost-link", "no-id", "reroute-circle", "inputs-list"],
)
def test_what_cannot_be_converted_is_named(document: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(WorkflowError) as error:
        to_prompt(document, DEFINITIONS)
    assert [word for word in words if word.lower() not in str(error.value).lower()] == []
    assert "Baz" not in str(error.value)


def test_a_subgraph_in_itself_is_refused() -> None:
    document = editor({"id": 1, "type": "sub"})
    document["definitions"] = {"subgraphs": [{"id": "sub", "name": "Loop", "nodes": [{"id": 2, "type": "sub"}]}]}
    with pytest.raises(WorkflowError, match="'Loop' contains itself"):
        to_prompt(document, DEFINITIONS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not there"),
        ('{\n"1": nope}', "line 2, column 6"),
        ("[1]", "list"),
        ("{}", "not a workflow"),
        ('{"a": 1}', "not a workflow"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "w.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkflowError, match=words):
        read_workflow(path)


PROMPT = api(
    n3={"class_type": "Sampler", "inputs": dict(SAMPLER_INPUTS), "_meta": {"title": "Main v1.0"}},
    n4={"class_type": "Source", "inputs": {"value": 1}},
    n5={"class_type": "Source", "inputs": {"value": 2}},
    n6={"class_type": "Pass", "inputs": {"number": ["4", 0]}},
)


@pytest.mark.parametrize(
    ("item", "node", "name", "value"),
    [
        ("3.steps=30", "3", "steps", 30),
        ("Sampler.scale=2.5", "3", "scale", 2.5),
        ("Main v1.0.prompt=a = b", "3", "prompt", "a = b"),
        ("3.prompt=5", "3", "prompt", "5"),
        ("3.recipe=2", "3", "recipe", "2"),
        ("3.recipe=other", "3", "recipe", "other"),
        ("3.steps=NaN", "3", "steps", "NaN"),
        ("6.number=8", "6", "number", 8),
    ],
)
def test_set(item: str, node: str, name: str, value: Any) -> None:
    changed = apply_sets(PROMPT, [item], DEFINITIONS)
    expected = copy.deepcopy(PROMPT)
    expected[node]["inputs"][name] = value
    assert changed == expected
    assert PROMPT[node]["inputs"][name] != value or item == "3.recipe=2"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("3.steps", "NODE.INPUT=VALUE"),
        ("steps=3", "NODE.INPUT=VALUE"),
        ("9.steps=3", r"no node .* 3 \(Main v1.0\)"),
        ("Source.value=3", r"2 nodes .* 4 \(Source\); 5 \(Source\)"),
        ("3.stepz=3", "no input 'stepz'. It has: seed, steps, prompt, recipe, scale"),
    ],
)
def test_set_that_fits_nothing(item: str, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        apply_sets(PROMPT, [item], DEFINITIONS)


@given(
    chains=st.lists(
        st.tuples(
            st.integers(-(2**53), 2**53),
            st.sampled_from(["Source", "PrimitiveNode"]),
            st.lists(st.sampled_from(["Reroute", "bypassed", "muted", "Pass"]), max_size=5),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_values_arrive(chains: list[tuple[int, str, list[str]]]) -> None:
    """Random chains from a value to a node's widget: what the node gets is the value, unless the chain is cut."""
    nodes: list[dict[str, Any]] = []
    links: list[Any] = []
    expected: dict[str, int] = {}

    def add(kind: str, link: int | None, name: str = "number", **more: Any) -> int:
        inputs = [] if link is None else [{"name": name, "type": "INT", "link": link}]
        nodes.append({"id": len(nodes) + 1, "type": kind, "inputs": inputs, "outputs": [{"type": "INT"}], **more})
        return len(nodes)

    def connect(origin: int) -> int:
        links.append([len(links) + 1, origin, 0, len(nodes) + 1, 0, "INT"])
        return len(links)

    for value, source, steps in chains:
        last = add(source, None, widgets_values=[value, "fixed"])
        for index, step in enumerate(steps):
            # Behind a cut a running node would lack its input, which is an error of its own: see test_execute.
            mode = {"bypassed": 4, "muted": 2}.get(step, 4 if "muted" in steps[:index] else 0)
            last = add("Reroute" if step == "Reroute" else "Pass", connect(last), mode=mode)
        sink = add("Sampler", connect(last), "steps", widgets_values=[1, "fixed", -5, "", "one", 1.0])
        expected[str(sink)] = -5 if "muted" in steps else value
    prompt = to_prompt({"nodes": nodes, "links": links}, DEFINITIONS)
    outputs = run_prompt(prompt, CLASSES).outputs
    assert {node_id: shown["steps"] for node_id, shown in outputs.items()} == expected
