"""Folders of a model and caches of the hub whose texts were changed: our own error, in short, or a model that loads.

What is drawn is the same every time; a folder has a name of its own each time, since what was read is kept by file.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from comfyui_aitk.headless.tiny import flux2
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.models import find_model, load_model
from comfyui_aitk.pipelines.parts.language_model.qwen3 import ChatTokenizer
from comfyui_aitk.pipelines.parts.tokenizers.folder import FolderTokenizer
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from comfyui_aitk.pipelines.weights.hub import open_repo
from comfyui_aitk.pipelines.weights.single_file import open_part
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rendering import COMMIT, put_into_cache

fuzzed = settings(
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = count()
MODELS = {"lumina2": "lumina2", "klein": "flux2_klein_4b"}
ODD = [
    None, True, -1, 0, 1, 3, 1 << 31, 10**40, 0.5, float("inf"), float("nan"), "", "silu", "\ud800", "\0", "x" * 5000,
    "../x", "/etc/passwd", [], {}, [1, 2, 3], [1 << 40], [[[[]]]], {"a": 1}, [None],
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(models: Path, tmp_path_factory) -> dict[str, Path]:
    """diffusers' folders, their weights in shards with an index. Read only."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("folders")
    klein = flux2.write_diffusers(folder / "klein", flux2.make_checkpoint(folder / "own", "flux2_klein_4b"))
    found = {"lumina2": models / "diffusers" / "tiny", "klein": klein}
    for name, whole in found.items():
        target = folder / "sharded" / name
        for file in (file for file in whole.rglob("*") if file.is_file()):
            own = target / file.relative_to(whole)
            own.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix != ".safetensors":
                own.write_bytes(file.read_bytes())
                continue
            tensors, where = load_file(file), {}
            for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
                shard = f"{file.stem}-0000{number}-of-00002.safetensors"
                save_file({key: tensors[key] for key in names}, own.with_name(shard))
                where |= dict.fromkeys(names, shard)
            own.with_name(f"{file.stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        found[name] = target
    return found


def changed_folder(tmp_path: Path, whole: Path, name: str, content: bytes) -> Path:
    """The folder with other content in one file; the others are linked."""
    folder = tmp_path / f"folder{next(NUMBERS)}"
    for file in (file for file in whole.rglob("*") if file.is_file()):
        own = folder / file.relative_to(whole)
        own.parent.mkdir(parents=True, exist_ok=True)
        if file.relative_to(whole).as_posix() == name:
            own.write_bytes(content)
        else:
            os.link(file, own)
    return folder


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:20]) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*above, key)
        yield from places(value, (*above, key))


@st.composite
def changed_text(draw: Callable[..., Any], text: bytes) -> bytes:
    """A text of JSON with values replaced or taken out; or with bytes that were."""
    if draw(st.integers(0, 4)) == 0:
        changed = bytearray(text)
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, len(changed) - 1))
            changed[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        return bytes(changed)
    tree = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        owner = tree
        for key in way:
            owner = owner[key]
        if draw(st.booleans()) or draw(st.booleans()):
            owner[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            del owner[last]
    return json.dumps(tree).encode()


def looked_at(folder: Path, model: str) -> bool:
    """Whether all that is asked before a run, up to the networks' shapes, is answered; else it was refused in short."""
    try:
        facts = find_model(model)
        checkpoint = Checkpoint.open(folder, "fuzzed", facts.files)
        checkpoint.fingerprint()
        load_model(facts).check(checkpoint)
        for source in checkpoint.sources:
            tokenizer = source.tokenizer() if source.role == "encoder" else None
            if isinstance(tokenizer, Path):
                own = FolderTokenizer if model == "lumina2" else partial(ChatTokenizer, thinking=False)
                own(tokenizer, source.name)("a red fox", None)
    except AITKError as error:
        text = str(error)
        assert len(text) < 1500, text
        assert str(folder.parent) not in text, text
        assert text.encode()
        return False
    return True


FILES = [
    "transformer/config.json", "text_encoder/config.json", "vae/config.json", "model_index.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "text_encoder/model.safetensors.index.json",
    "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer.json",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_folder_is_looked_at(folders, name):
    assert looked_at(folders[name], MODELS[name])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", MODELS)
@fuzzed
@given(data=st.data())
def test_a_changed_text(tmp_path, folders, name, file, data):
    if not (folders[name] / file).is_file():
        pytest.skip("it has no such file")
    text = data.draw(changed_text((folders[name] / file).read_bytes()))
    looked_at(changed_folder(tmp_path, folders[name], file, text), MODELS[name])


OWN = {"transformer": {"num_attention_heads": 4, "axes_dim_rope": [8, 8, 8]}, "text_encoder": {"rope_theta": 1e4}}


@fuzzed
@given(text=changed_text(json.dumps(OWN).encode()))
def test_changed_words_beside_a_single_file(tmp_path, written, text):
    """NAME.aitk.json."""
    folder = tmp_path / f"files{next(NUMBERS)}"
    folder.mkdir()
    os.link(written / "diffusion_models" / "lumina.safetensors", folder / "x.safetensors")
    (folder / "x.aitk.json").write_bytes(text)
    try:
        source = open_part(folder / "x.safetensors", "x.safetensors", "transformer", find_model("lumina2").files)
        load_model(find_model("lumina2")).parts["transformer"].check_files(source)
    except AITKError as error:
        assert len(str(error)) < 1500
        assert str(folder) not in str(error)


@fuzzed
@given(reference=st.binary(max_size=50) | st.text("0123456789abcdef./\\\0", min_size=38, max_size=42).map(str.encode))
def test_a_changed_reference_of_the_cache(tmp_path, models, hub_cache, reference):
    """The one snapshot is used whatever refs/main says, and nothing outside of it."""
    repository, folder = f"owner/tiny{next(NUMBERS)}", models / "diffusers" / "tiny"
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.*")}
    put_into_cache(hub_cache, repository, files)
    (hub_cache / f"models--{repository.replace('/', '--')}" / "refs" / "main").write_bytes(reference)
    found = open_repo(repository, find_model("lumina2").files)
    assert found["transformer"].name == f"{repository}@{COMMIT[:12]}"
