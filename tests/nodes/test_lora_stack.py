"""AITK LoRA Stack: a chain of Apply AITK LoRA on one node."""

from __future__ import annotations

import shutil
from inspect import signature
from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError, FileError, InputError
from rendering import render

STACK, APPLY = NODE_CLASS_MAPPINGS["AITKLoRAStack"], NODE_CLASS_MAPPINGS["ApplyAITKLoRA"]


@pytest.fixture
def loras(host, models: Path, tmp_path: Path) -> Path:
    """A loras folder of a test's own, with two files."""
    tiny = shutil.copytree(models / "diffusers" / "tiny", tmp_path / "own" / "diffusers" / "tiny")
    folder = tmp_path / "own" / "loras"
    make_lora(folder / "a.safetensors", tiny, trigger_word="ay")
    make_lora(folder / "sub" / "b.safetensors", tiny, trigger_word="bee", seed=2)
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    return folder


@pytest.fixture
def pipeline(loras):
    return NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "float32")[0]


def test_a_stack_is_a_chain(pipeline):
    stacked, words, info = STACK().apply(
        pipeline, "live", lora_2="a.safetensors", strength_2=0.5, lora_5="sub/b.safetensors", strength_5=-1
    )
    first, _, about = APPLY().apply(pipeline, "a.safetensors", 0.5, "live")
    second, _, about_second = APPLY().apply(first, "sub/b.safetensors", -1, "live")
    assert stacked == second
    assert words == "ay, bee"
    assert info == f"2: a.safetensors\n{about}\n\n5: sub/b.safetensors\n{about_second}"


def test_it_changes_the_picture_as_the_chain_does(loras):
    names = {"lora_1": "a.safetensors", "strength_1": 0.8, "lora_2": "sub/b.safetensors", "on_2": False}
    (stacked, *_), (single, *_) = (
        render({"model": "lumina2", "weights": "tiny"}, steps=1, **change)
        for change in ({"stack": names}, {"lora": {"lora_name": "a.safetensors"}})
    )
    assert (stacked == single).all()


def test_what_is_off_or_empty_is_as_if_it_were_not_there(pipeline):
    gone = {"lora_1": "gone.safetensors", "on_1": False, "lora_2": "none", "lora_3": None}
    assert STACK().apply(pipeline, **gone) == (pipeline, "", "")
    assert STACK().apply(pipeline) == (pipeline, "", "")
    # ComfyUI leaves the check of the names that this method takes to it
    assert {f"lora_{n}" for n in range(1, 7)} == signature(STACK.VALIDATE_INPUTS).parameters.keys()
    assert STACK.VALIDATE_INPUTS(lora_1="gone.safetensors", lora_2="none") is True
    assert STACK.IS_CHANGED(**gone) == STACK.IS_CHANGED()


def test_one_file_in_two_slots_is_two_loras_and_one_trigger_word(pipeline):
    made, words, _ = STACK().apply(pipeline, lora_1="a.safetensors", lora_2="a.safetensors", strength_2=2.0)
    assert [lora.strength for lora in made.loras] == [1.0, 2.0]
    assert words == "ay"


def test_a_file_that_was_saved_again_is_noticed(pipeline, loras):
    before = STACK.IS_CHANGED(lora_1="a.safetensors")
    assert STACK.IS_CHANGED(lora_1="a.safetensors") == before
    make_lora(loras / "a.safetensors", loras.parent / "diffusers" / "tiny", seed=7)
    assert STACK.IS_CHANGED(lora_1="a.safetensors") != before


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({"lora_4": "gone.safetensors"}, FileError, "^lora_4: LoRA 'gone.safetensors' is not there"),
        ({"lora_1": "a.safetensors", "strength_1": "x"}, InputError, "^strength_1 is 'x': choose a number"),
        ({"lora_1": "a.safetensors", "on_1": "yes"}, InputError, "^on_1 is 'yes'"),
        ({"lora_1": "../a.safetensors"}, FileError, "is refused"),
        ({"application": "sideways"}, InputError, "application 'sideways' is unknown"),
    ],
)
def test_what_cannot_be_applied_names_its_slot(pipeline, inputs, kind, message):
    with pytest.raises(kind, match=message):
        STACK().apply(pipeline, **inputs)


def test_a_file_of_another_model_names_its_slot(pipeline, loras, tmp_path):
    from comfyui_aitk.headless.tiny import z_image

    other = z_image.make_checkpoint(tmp_path / "z")
    z_image.make_lora(loras / "z.safetensors", other)
    with pytest.raises(AITKError, match=r"^lora_3: .*z\.safetensors"):
        STACK().apply(pipeline, lora_3="z.safetensors")
