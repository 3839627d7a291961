"""Workflows of any shape: either a prompt or one short error of ours, whatever was done to the file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from comfyui_aitk.headless.core_nodes import CORE_CLASSES, CORE_NAMES
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.validate import Declared, execution_order, validate_prompt
from comfyui_aitk.headless.workflow import definitions_of, fill_in_names, read_workflow, to_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError, WorkflowError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE = 6000
CLASSES = {**CORE_CLASSES, **NODE_CLASS_MAPPINGS}
EXPORT = json.loads((Path(__file__).parent / "editor_export.json").read_text(encoding="utf-8"))
EXAMPLES = [
    json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "example_workflows").glob("*.json"))
]

fuzzed = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def definitions(tmp_path: Path):
    use_host(PlainHost(tmp_path / "models", tmp_path, tmp_path / "output", "cpu"))
    yield definitions_of(CLASSES, {**CORE_NAMES, **NODE_DISPLAY_NAME_MAPPINGS})
    use_host(None)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD = st.one_of(
    st.sampled_from(
        [
            None, True, 0, -1, 1, 2, 4, 2**63, 10**400, 1.5, math.nan, math.inf, "", "0", "1", "-10", "\0", "\ud800",
            "x" * 5000, "../../etc", "<img onerror=x>", [], {}, [[]], [1], ["1", 0], ["1", 0, 0], {"__value__": [1]},
            [0] * 1000, _deep(500), "PrimitiveNode", "Reroute", "SetNode", "GetNode", "Anything Everywhere",
            "workflow>x", "AITKSampler",
        ]
    ),
    st.integers(), st.text(max_size=5),
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything in a document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@st.composite
def damaged(draw: st.DrawFn, documents: list[Any]) -> Any:
    """A real workflow with some of its values replaced, removed, doubled, or exchanged."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 4))):
        places = _places(document)
        if not places:
            break
        path = draw(st.sampled_from(places))
        holder, key = _at(document, path[:-1]), path[-1]
        match draw(st.sampled_from(["replace", "remove", "double", "exchange"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(ODD))
            case "remove":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                other = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(_at(document, other))
    return document


def _prompt(document: Any, definitions: Any) -> Any:
    """The workflow in API format, checked as far as before the first node runs; None where it is refused."""
    try:
        prompt = fill_in_names(to_prompt(document, definitions), document)
        declared = Declared(CLASSES)
        validate_prompt(prompt, execution_order(prompt, declared), declared)
    except WorkflowError as error:
        assert 10 < len(str(error)) < LONGEST_MESSAGE
        return None
    return prompt


@fuzzed
@given(document=damaged([EXPORT["workflow"], *EXAMPLES]))
def test_a_damaged_workflow_of_the_editor(definitions: Any, document: Any) -> None:
    if isinstance(document.get("nodes"), list):
        _prompt(document, {**definitions, **EXPORT["definitions"]} if len(document) % 2 else definitions)


@fuzzed
@given(data=st.data())
def test_a_damaged_prompt(definitions: Any, data: st.DataObject) -> None:
    prompts = [to_prompt(document, definitions) for document in EXAMPLES[:3]]
    _prompt(data.draw(damaged(prompts)), definitions)


@fuzzed
@given(data=st.data())
def test_any_value_in_any_field(definitions: Any, data: st.DataObject) -> None:
    """Each node gets it as ComfyUI hands on what comes over a wire: as it is."""
    name = data.draw(st.sampled_from(sorted(set(CLASSES) - {"AITKSampler", "PreviewImage"})))
    declared = Declared(CLASSES).specs(name)
    values = {key: data.draw(ODD) for key in declared if key in Declared(CLASSES).group(name, "required")}
    values |= {key: data.draw(ODD) for key in declared if data.draw(st.booleans())}
    node_class = CLASSES[name]
    try:
        getattr(node_class(), node_class.FUNCTION)(**values)
    except AITKError as error:
        assert 10 < len(str(error)) < LONGEST_MESSAGE
    validate = getattr(node_class, "VALIDATE_INPUTS", None)
    if validate is not None:
        verdict = validate(next(iter(values.values())))
        assert verdict is True or 10 < len(verdict) < LONGEST_MESSAGE


@fuzzed
@given(
    text=st.binary(max_size=200) | st.sampled_from([b"\xff\xfe{}", b'{"nodes": [' + b"[" * 5000, b"NaN", b'"\\ud800"'])
)
def test_a_file_of_any_bytes(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(text)
    try:
        read_workflow(path)
    except WorkflowError as error:
        assert len(str(error)) < 500
        assert str(tmp_path) not in str(error)


def test_a_workflow_that_no_picture_could_hold_is_refused_when_it_is_read(tmp_path: Path) -> None:
    node = {"id": 1, "type": "PreviewAny", "properties": _deep(300)}
    (tmp_path / "w.json").write_text(json.dumps({"nodes": [node], "links": []}))
    with pytest.raises(WorkflowError, match="nested too deeply"):
        read_workflow(tmp_path / "w.json")


MANY = 20_000


def _many_gets() -> dict[str, Any]:
    sets = [
        {"id": n, "type": "SetNode", "widgets_values": [f"p{n}"], "inputs": [{"name": "in", "link": n}]}
        for n in range(1, MANY)
    ]
    gets = [{"id": MANY + n, "type": "GetNode", "widgets_values": [f"p{n}"]} for n in range(1, MANY)]
    shown = [
        {"id": 2 * MANY + n, "type": "PreviewAny", "inputs": [{"name": "source", "type": "*", "link": MANY + n}]}
        for n in range(1, MANY)
    ]
    one = {"id": 0, "type": "PrimitiveInt", "widgets_values": [1, "fixed"]}
    links = [[n, 0, 0, n, 0, "INT"] for n in range(1, MANY)]
    links += [[MANY + n, MANY + n, 0, 2 * MANY + n, 0, "INT"] for n in range(1, MANY)]
    return {"nodes": [one, *sets, *gets, *shown], "links": links}


def _many_fields() -> dict[str, Any]:
    names = [f"f{n}" for n in range(3000)]
    inner = [
        {
            "id": n, "type": "PrimitiveInt", "widgets_values": [n, "fixed"],
            "inputs": [{"name": "value", "type": "INT", "widget": {"name": "value"}, "link": n}],
        }
        for n in range(3000)
    ]  # fmt: skip
    subgraph = {
        "id": "s", "nodes": inner, "inputs": [{"name": name, "linkIds": [n]} for n, name in enumerate(names)],
        "links": [
            {"id": n, "origin_id": -10, "origin_slot": n, "target_id": n, "target_slot": 0} for n in range(3000)
        ],
    }  # fmt: skip
    return {"nodes": [{"id": 1, "type": "s"}], "links": [], "definitions": {"subgraphs": [subgraph]}}


def _tapped_chain(kind: str) -> dict[str, Any]:
    """A chain of nodes that carry on, and a reader at each of them: following all takes half of the square."""
    count = 5000
    inputs = [{"name": "a", "type": "INT"}]
    chain = [
        {"id": n, "type": kind, "mode": 4, "inputs": [{**inputs[0], "link": n}], "outputs": [{"type": "INT"}]}
        for n in range(1, count)
    ]
    readers = [
        {"id": count + n, "type": "PreviewAny", "inputs": [{"name": "source", "type": "INT", "link": count + n}]}
        for n in range(1, count)
    ]
    links = [[n, n - 1, 0, n, 0, "INT"] for n in range(1, count)]
    links += [[count + n, n, 0, count + n, 0, "INT"] for n in range(1, count)]
    return {"nodes": [{"id": 0, "type": "PrimitiveInt", "widgets_values": [1]}, *chain, *readers], "links": links}


def test_many_gets_find_their_sets(definitions: Any) -> None:
    prompt = to_prompt(_many_gets(), definitions)
    assert prompt[str(2 * MANY + 77)]["inputs"] == {"source": ["0", 0]}
    assert len(prompt) == MANY


def test_many_fields_of_a_subgraph_find_their_values(definitions: Any) -> None:
    document = _many_fields()
    assert to_prompt(document, definitions)["1:2999"]["inputs"] == {"value": 2999}
    document["nodes"][0]["widgets_values"] = [-n for n in range(3000)]
    assert to_prompt(document, definitions)["1:2999"]["inputs"] == {"value": -2999}


@pytest.mark.parametrize("kind", ["Reroute", "Foreign"])
def test_chains_that_take_too_long_to_follow_are_refused(definitions: Any, kind: str) -> None:
    with pytest.raises(WorkflowError, match="chains of links are too long"):
        to_prompt(_tapped_chain(kind), definitions)


def _loop_of_subgraphs() -> dict[str, Any]:
    graphs = [
        {"id": f"g{n}", "name": "x" * 9999, "nodes": [{"id": 1, "type": f"g{(n + 1) % 40}"}], "links": []}
        for n in range(40)
    ]
    return {"nodes": [{"id": 1, "type": "g0"}], "links": [], "definitions": {"subgraphs": graphs}}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (_loop_of_subgraphs(), "contains itself"),
        ({"nodes": [{"id": 1, "type": "PreviewAny"}] * 200_001}, "more than 200,000"),
        ({"nodes": [{"id": 1, "type": "X", "inputs": [{"name": "a"}] * 200_001}]}, "more than 200,000"),
        ({"nodes": [{"id": n, "type": "U" * 999, "title": "y" * 999} for n in range(5000)]}, "Unknown node"),
        ({"nodes": [{"id": 1, "type": "PreviewAny", "inputs": [{"name": "a", "link": [1]}]}]}, "damaged"),
        ({"nodes": [], "definitions": {"subgraphs": _deep(2000)}}, "damaged"),
    ],
    ids=["loop", "nodes", "inputs", "unknown", "link", "deep"],
)  # fmt: skip
def test_too_much_is_refused_in_short(definitions: Any, document: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError, match=words) as caught:
        to_prompt(document, definitions)
    assert len(str(caught.value)) < LONGEST_MESSAGE


@pytest.mark.usefixtures("definitions")
def test_a_node_id_of_half_characters_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = {"a\ud800\x1b[2J": {"class_type": "PreviewAny", "inputs": {"source": 1}}}
    assert [*run_prompt(prompt, CLASSES).outputs] == [*prompt]
    host = PlainHost(Path(), Path(), Path())
    host.show_text(next(iter(prompt)), "note \ud800")
    host.progress(next(iter(prompt)), 2, "").update(1, 2, None)
    shown = capsys.readouterr().err
    assert "note" in shown
    assert "step 1/2" in shown
    assert not set("\ud800\x1b") & set(shown)
