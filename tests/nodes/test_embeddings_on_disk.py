"""The switch of AITK Runtime Options, through the nodes: where embeddings go, and that they stay away when told so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.host.comfyui import ComfyHost
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import InputError


def _run(**options: object) -> tuple[int, int]:
    """Texts encoded, and found on the disk, in a run after a restart."""
    engine.cache_clear()
    quantization = dict.fromkeys(("transformer_quantization", "text_encoder_quantization"), "none")
    inputs = {
        "pipeline": ["load", 0], "prompt": "a fox", "negative_prompt": "", "width": 64, "height": 64, "steps": 1,
        "guidance_scale": 1.0, "seed": 1, "recipe": "trainer preview", "trigger_word": "", "system_prompt": "",
        "batch_size": 1,
    }  # fmt: skip
    nodes = {
        "options": ("AITKRuntimeOptions", quantization | {"text_encoder_attention": "auto"} | options),
        "load": ("LoadAITKModel", {"model": "lumina2", "weights": "tiny", "dtype": "auto", "options": ["options", 0]}),
        "sample": ("AITKSampler", inputs),
        "save": (
            "AITKSaveImage",
            {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"},
        ),
    }
    run_prompt({name: {"class_type": kind, "inputs": own} for name, (kind, own) in nodes.items()}, NODE_CLASS_MAPPINGS)
    return engine().counters.texts_encoded, engine().counters.texts_from_disk


def test_prompts_are_kept_by_default_and_not_where_it_is_switched_off(host: PlainHost, tmp_path: Path):
    folder = tmp_path / "user" / "embeddings"
    use_host(PlainHost(host.models, host.input, host.output, "cpu", embeddings=folder))
    assert _run(embeddings_on_disk=False) == (1, 0)
    assert not folder.exists()
    # as in a workflow that was saved before there was the switch
    assert _run() == (1, 0)
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert _run(embeddings_on_disk=True) == (0, 1)
    assert _run(embeddings_on_disk=False) == (1, 0)


def test_without_comfyui_nothing_is_kept_unless_a_folder_is_given(host: PlainHost):
    assert host.embeddings_folder() is None
    assert [_run(), _run()] == [(1, 0)] * 2


def test_in_comfyui_they_lie_in_its_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = ModuleType("folder_paths")
    vars(paths).update(get_user_directory=lambda: str(tmp_path / "user"))
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    assert ComfyHost().embeddings_folder() == tmp_path / "user" / "__aitk" / "embeddings"


@pytest.mark.parametrize("value", ["true", 1, None])
def test_what_is_neither_on_nor_off_is_refused(host: PlainHost, value: object):
    make = NODE_CLASS_MAPPINGS["AITKRuntimeOptions"]().make
    with pytest.raises(InputError, match=r"embeddings_on_disk is .*: choose true or false\."):
        make("none", "none", embeddings_on_disk=value)
