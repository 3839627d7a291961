"""Wires without lines, and switches of the page: what each comes to, compared with the same graph drawn plainly."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui_aitk.headless.core_nodes import CORE_CLASSES, CORE_NAMES
from comfyui_aitk.headless.workflow import definitions_of, to_prompt
from comfyui_aitk.pipelines.errors import WorkflowError

DEFINITIONS = definitions_of(CORE_CLASSES, CORE_NAMES)
LOAD = {
    "id": 1, "type": "LoadImage", "widgets_values": ["a.png"],
    "outputs": [{"name": "IMAGE", "type": "IMAGE"}, {"name": "MASK", "type": "MASK"}],
}  # fmt: skip
NUMBER = {"id": 4, "type": "PrimitiveInt", "widgets_values": [7, "fixed"], "outputs": [{"name": "INT", "type": "INT"}]}


def _save(link: int | None, node_id: int = 2, **more: Any) -> dict[str, Any]:
    slots = [{"name": "images", "type": "IMAGE", "link": link}]
    return {"id": node_id, "type": "SaveImage", "widgets_values": ["x"], "inputs": slots, **more}


def _node(node_id: int, kind: str, *links: int | None, **more: Any) -> dict[str, Any]:
    slots = [{"name": f"in{n}", "type": "IMAGE", "link": link} for n, link in enumerate(links)]
    return {"id": node_id, "type": kind, "inputs": slots, "outputs": [{"name": "out", "type": "IMAGE"}], **more}


def _prompt(*nodes: dict[str, Any], links: list[Any], **more: Any) -> dict[str, Any]:
    return to_prompt({"nodes": list(nodes), "links": links, **more}, DEFINITIONS)


PLAIN = _prompt(LOAD, _save(9), links=[[9, 1, 0, 2, 0, "IMAGE"]])


def _sent(
    origin: Any, slot: int, target: Any, target_slot: int, controller: int = 5, kind: str = "IMAGE"
) -> dict[str, Any]:
    """An entry as Use Everywhere notes it."""
    return {
        "upstream": str(origin), "upstream_slot": slot, "downstream": target, "downstream_slot": target_slot,
        "controller": controller, "type": kind,
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"]
)
def test_what_goes_everywhere_is_a_wire(kind: str) -> None:
    everywhere = _node(5, kind, 8)
    found = _prompt(
        LOAD, everywhere, _save(None), links=[[8, 1, 0, 5, 0, "IMAGE"]], extra={"ue_links": [_sent(1, 0, 2, 0)]}
    )
    assert found == PLAIN


def test_a_line_that_was_drawn_for_it_while_saving_is_a_wire_too() -> None:
    # the file names a link that it does not have: seen in the pack's own example
    extra = {"ue_links": [_sent(1, 0, 2, 0)], "links_added_by_ue": [13]}
    found = _prompt(LOAD, _node(5, "Anything Everywhere", 8), _save(13), links=[[8, 1, 0, 5, 0, "IMAGE"]], extra=extra)
    assert found == PLAIN


def test_a_node_may_send_its_own_output_everywhere_and_into_a_field() -> None:
    sender = {**NUMBER, "properties": {"ue_convert": True}}
    # the page lists a node's fields behind its sockets: PrimitiveInt's only input is its field
    target = {"id": 6, "type": "PrimitiveInt", "widgets_values": [1, "fixed"]}
    shown = {"id": 7, "type": "PreviewAny", "inputs": [{"name": "source", "type": "*", "link": 3}]}
    found = _prompt(
        sender, target, shown, links=[[3, 6, 0, 7, 0, "*"]], extra={"ue_links": [_sent(4, 0, 6, 0, 4, "INT")]}
    )
    assert found["6"]["inputs"] == {"value": ["4", 0]}


def test_what_goes_everywhere_goes_to_a_subgraph_s_output() -> None:
    subgraph = {
        "id": "s", "name": "S", "nodes": [LOAD, _node(5, "Anything Everywhere", 8)],
        "outputs": [{"name": "image", "type": "IMAGE"}],
        "links": [{"id": 8, "origin_id": 1, "origin_slot": 0, "target_id": 5, "target_slot": 0}],
        "extra": {"ue_links": [_sent(1, 0, -20, 0)]},
    }  # fmt: skip
    use = {"id": 3, "type": "s", "outputs": [{"name": "image", "type": "IMAGE"}]}
    found = _prompt(use, _save(9), links=[[9, 3, 0, 2, 0, "IMAGE"]], definitions={"subgraphs": [subgraph]})
    assert found["2"]["inputs"]["images"] == ["3:1", 0]


@pytest.mark.parametrize("mode", [2, 4])
def test_a_sender_that_is_off_sends_nothing(mode: int) -> None:
    found = _prompt(
        LOAD, _node(5, "Anything Everywhere", 8, mode=mode), _save(None),
        links=[[8, 1, 0, 5, 0, "IMAGE"]], extra={"ue_links": [_sent(1, 0, 2, 0)]},
    )  # fmt: skip
    assert "images" not in found["2"]["inputs"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, "Node 5 \\(Anything Everywhere\\) feeds inputs .* the file does not say which"),
        ({"ue_links": [_sent(1, 0, 2, 99)]}, "Node 2 \\(SaveImage\\) has no input 99"),
        ({"ue_links": [_sent(77, 0, 2, 0)]}, "node '77', which is not in the file"),
        ({"ue_links": [5]}, "damaged"),
        ({"ue_links": [{"upstream": 1}]}, "damaged"),
    ],
)
def test_what_cannot_be_traced_is_named(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        _prompt(LOAD, _node(5, "Anything Everywhere", 8), _save(None), links=[[8, 1, 0, 5, 0, "IMAGE"]], extra=extra)


def test_a_prompt_in_api_format_may_hold_a_sender() -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
        "5": {"class_type": "Anything Everywhere", "inputs": {"anything": ["1", 0]}},
    }
    assert [*to_prompt(prompt, DEFINITIONS)] == ["1", "2"]


@pytest.mark.parametrize("kind", ["Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss"])
@pytest.mark.parametrize(("mode", "arrives"), [(0, True), (2, False), (4, True)])
def test_reroutes(kind: str, mode: int, arrives: bool) -> None:
    found = _prompt(
        LOAD, _node(5, kind, 8, mode=mode), _save(9), links=[[8, 1, 0, 5, 0, "IMAGE"], [9, 5, 0, 2, 0, "IMAGE"]]
    )
    assert found == PLAIN if arrives else "images" not in found["2"]["inputs"]


def test_a_get_takes_the_set_of_its_own_pack() -> None:
    other = {**LOAD, "id": 6}
    nodes = [
        LOAD, other, _node(7, "easy setNode", 10, widgets_values=["p"]), _node(5, "SetNode", 8, widgets_values=["p"]),
        _node(3, "GetNode", widgets_values=["p"]), _save(9),
    ]  # fmt: skip
    links = [[10, 6, 0, 7, 0, "IMAGE"], [8, 1, 0, 5, 0, "IMAGE"], [9, 3, 0, 2, 0, "IMAGE"]]
    assert _prompt(*nodes, links=links)["2"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize("name", ["", None, 5, ["p"], "q"])
def test_a_get_without_a_name_is_named(name: Any) -> None:
    nodes = [LOAD, _node(5, "SetNode", 8, widgets_values=[name if name != "q" else "p"])]
    links = [[8, 1, 0, 5, 0, "IMAGE"], [9, 3, 0, 2, 0, "IMAGE"]]
    with pytest.raises(WorkflowError, match=r"Node 3 .* no Set node of the workflow sets it"):
        _prompt(*nodes, _node(3, "GetNode", widgets_values=[name]), _save(9), links=links)


@pytest.mark.parametrize("mode", [0, 2, 4])
def test_a_primitive_writes_its_value_whatever_its_mode(mode: int) -> None:
    """So the page does: it goes through all of its own nodes before it asks which of them are muted."""
    field = {"name": "filename_prefix", "type": "STRING", "widget": {"name": "filename_prefix"}, "link": 3}
    save = _save(9)
    save["inputs"].append(field)
    primitive = {"id": 4, "type": "PrimitiveNode", "widgets_values": ["typed"], "outputs": [{"type": "STRING"}]}
    links = [[9, 1, 0, 2, 0, "IMAGE"], [3, 4, 0, 2, 1, "STRING"]]
    found = _prompt(LOAD, {**primitive, "mode": mode}, save, links=links)
    assert found["2"]["inputs"]["filename_prefix"] == "typed"


def test_a_server_s_class_of_such_a_name_is_a_node() -> None:
    """A pack of the server may really have a class that elsewhere is the page's."""
    definitions = {**DEFINITIONS, "SetNode": {"input": {"required": {}}, "output": ["IMAGE"]}}
    document = {
        "nodes": [LOAD, _node(5, "SetNode", 8), _save(9)],
        "links": [[8, 1, 0, 5, 0, "IMAGE"], [9, 5, 0, 2, 0, "IMAGE"]],
    }
    assert to_prompt(document, definitions)["2"]["inputs"]["images"] == ["5", 0]


def test_a_choice_of_one_s_own_options_has_its_number() -> None:
    """Core's CustomCombo, whose options are fields that only the page's script knows; from a template of ComfyUI's."""
    definitions = {
        "CustomCombo": {
            "input": {"required": {"choice": ["COMBO", {"options": []}]}}, "output": ["STRING", "INT"],
            "display_name": "Custom Combo",
        },
    }  # fmt: skip
    node = {"id": 1, "type": "CustomCombo", "widgets_values": ["Latin", 0, "Classic", "K-Pop", "Latin", ""]}
    expected = {"choice": "Latin", "index": 2, "option1": "Classic", "option2": "K-Pop", "option3": "Latin"}
    found = to_prompt({"nodes": [node], "links": []}, definitions)
    assert found["1"]["inputs"] == {**expected, "option4": ""}
