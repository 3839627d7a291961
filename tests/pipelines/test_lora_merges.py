"""What the reference recipes' servers make of a weight: diffusers' own fuse_lora, and ai-toolkit-inference's formulas.

``tests/live/test_inference_merges.py`` runs the server's own code on the same kinds of files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, krea2, omnigen2, qwen_image, qwen_image_edit
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from rendering import AskedMachine, wanted
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

REFERENCE = "reference pipeline"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
LORAS = {"flux2_klein_4b": flux2, "krea2": krea2, "omnigen2": omnigen2, "qwen_image:2512": qwen_image}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "flux2_klein_4b": lambda folder: flux2.make_checkpoint(folder, "flux2_klein_4b"),
    "krea2": krea2.make_checkpoint,
    "omnigen2": omnigen2.make_checkpoint,
    "qwen_image:2512": qwen_image.make_checkpoint,
    "qwen_image_edit_plus:2511": lambda folder: qwen_image_edit.make_checkpoint(folder, zero_time=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(model: str) -> Path:
        if model not in made:
            made[model] = MAKERS[model](tmp_path_factory.mktemp("models") / "tiny")
        return made[model]

    return get


def _merged(engine, model: str, folder: Path, dtype: str, *loras: tuple[Path, float], recipe=REFERENCE) -> Tensors:
    """The transformer's tensors under the recipe's own way to apply these files."""
    facts = find_model(model)
    checkpoint = Checkpoint.open(folder, "tiny", facts.files)
    handle = PipelineHandle(model, checkpoint, dtype)
    for path, strength in loras:
        handle = handle.with_lora(open_lora(path, path.name, facts, checkpoint).spec(strength, "auto"))
    engine.apply_loras(wanted(engine, handle, recipe), "transformer", SilentObserver())
    with engine.on_device(wanted(engine, handle, recipe), "transformer", SilentObserver()) as transformer:
        return {name: value.clone() for name, value in transformer.state_dict().items()}


def _check(ours: Tensors, theirs: Tensors, plain: Tensors) -> None:
    assert ours.keys() == theirs.keys() == plain.keys()
    changed = [name for name, value in plain.items() if not torch.equal(ours[name], value)]
    assert len(changed) > 10
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


# ---- diffusers' fuse_lora -------------------------------------------------------------------------------------------


def _with_several_ranks(path: Path, folder: Path) -> Path:
    first = qwen_image.make_lora(path.with_name("first.safetensors"), folder, rank=2, only=["attn"])
    second = qwen_image.make_lora(path.with_name("second.safetensors"), folder, rank=7, only=["mlp"], seed=3)
    save_file(load_file(first) | load_file(second), path)
    return path


def _with_kohyas_ends(path: Path, folder: Path) -> Path:
    plain = load_file(qwen_image.make_lora(path, folder, rank=6, alpha=0.25, dtype=torch.float16))
    ends = {"lora_A": "lora_down", "lora_B": "lora_up"}
    named = {key.replace("lora_A", ends["lora_A"]).replace("lora_B", ends["lora_B"]): plain[key] for key in plain}
    save_file(named, path)
    return path


FUSED: dict[str, Callable[[Path, Path], Path]] = {
    "as AI Toolkit saves it": lambda path, folder: qwen_image.make_lora(path, folder, rank=5),
    "float32": lambda path, folder: qwen_image.make_lora(path, folder, rank=5, dtype=torch.float32),
    # alpha / rank is no power of two: what is multiplied into A is rounded
    "alpha": lambda path, folder: qwen_image.make_lora(path, folder, rank=4, alpha=3.0),
    "small alpha": lambda path, folder: qwen_image.make_lora(path, folder, rank=4, alpha=0.1, dtype=torch.float32),
    "several ranks": _with_several_ranks,
    "kohya's ends": _with_kohyas_ends,
}


def _fused(folder: Path, dtype: torch.dtype, *loras: tuple[Path, float]) -> Tensors:
    """As ai-toolkit-inference loads an adapter and fuses it; each of several in its turn."""
    transformer = QwenImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
    pipeline = QwenImagePipeline.from_pretrained(folder, transformer=transformer, text_encoder=None, vae=None)
    for path, strength in loras:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora")
        pipeline.fuse_lora(adapter_names=["lora"], lora_scale=strength)
        pipeline.unload_lora_weights()
    return transformer.state_dict()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FUSED)
def test_a_lora_is_fused_as_diffusers_fuses_it(engine, folders, tmp_path, kind, dtype):
    folder = folders("qwen_image:2512")
    path = FUSED[kind](tmp_path / "lora.safetensors", folder)
    plain = _fused(folder, DTYPES[dtype])
    for strength in (1.0, -0.7):
        ours = _merged(engine, "qwen_image:2512", folder, dtype, (path, strength))
        _check(ours, _fused(folder, DTYPES[dtype], (path, strength)), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["qwen_image:2512", "qwen_image_edit_plus:2511"])
def test_a_stack_is_fused_one_after_the_other(engine, folders, tmp_path, model, dtype):
    folder = folders(model)
    stack = [
        (qwen_image.make_lora(tmp_path / "first.safetensors", folder, rank=3), 0.7),
        (qwen_image.make_lora(tmp_path / "second.safetensors", folder, rank=6, alpha=4.0, seed=2), -0.4),
    ]
    theirs = _fused(folder, DTYPES[dtype], *stack)
    _check(_merged(engine, model, folder, dtype, *stack), theirs, _fused(folder, DTYPES[dtype]))
    # in the dtypes of 16 bits AI Toolkit's float32 merge is another one
    others = _merged(engine, model, folder, dtype, *stack, recipe="trainer preview")
    assert dtype == "float32" or any(not torch.equal(others[name], theirs[name]) for name in theirs)


# ---- ai-toolkit-inference's own -------------------------------------------------------------------------------------


def _pairs(tensors: Tensors) -> dict[str, Tensors]:
    """layer -> its tensors, by the ends of their names."""
    found: dict[str, Tensors] = {}
    for key, value in tensors.items():
        layer, _, end = key.removeprefix("diffusion_model.").replace(".weight", "").rpartition(".")
        found.setdefault(f"{layer}.weight", {})[end] = value
    return found


def _added(plain: Tensors, path: Path, strength: float) -> Tensors:
    """W + (alpha / rank * strength) * B A by addmm; a LoKr's product by add; all cast to the weight's dtype before."""
    merged = {name: value.clone() for name, value in plain.items()}
    for name, own in _pairs(load_file(path)).items():
        weight = merged[name]
        own = {end: value.to(weight.dtype) for end, value in own.items()}
        if "lora_A" in own:
            rank = len(own["lora_A"])
            scale = own["alpha"].item() / rank if "alpha" in own else 1.0
            weight.addmm_(own["lora_B"], own["lora_A"], beta=1.0, alpha=scale * strength)
            continue
        whole = "lokr_w1" in own and "lokr_w2" in own
        first = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        second = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
        rank = next((value.shape[1] for end, value in own.items() if end.endswith("_a")), 1)
        scale = 1.0 if whole else own["alpha"].item() / rank
        weight.add_(torch.kron(first, second), alpha=scale * strength)
    return merged


def _both_factored(path: Path, folder: Path) -> Path:
    """A LoKr whose w1, too, is a product, as LyCORIS' decompose_both makes it."""
    tensors = load_file(krea2.make_lokr(path, folder, rank=3, alpha=2.0))
    generator = torch.Generator().manual_seed(4)
    for key in [key for key in tensors if key.endswith(".lokr_w1")]:
        rows, columns = tensors.pop(key).shape
        for end, shape in (("_a", (rows, 3)), ("_b", (3, columns))):
            tensors[f"{key}{end}"] = (torch.randn(shape, generator=generator) / 2).to(torch.bfloat16)
    save_file(tensors, path)
    return path


ADDED: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "Krea 2": ("krea2", lambda path, folder: krea2.make_lora(path, folder, rank=5)),
    "Krea 2, float32 with an alpha that bfloat16 rounds": (
        "krea2", lambda path, folder: krea2.make_lora(path, folder, rank=6, alpha=22.627417, dtype=torch.float32),
    ),
    "Krea 2, LoKr of whole factors": ("krea2", lambda path, folder: krea2.make_lokr(path, folder)),
    "Krea 2, LoKr": ("krea2", lambda path, folder: krea2.make_lokr(path, folder, rank=3, alpha=2.0)),
    "Krea 2, LoKr of four factors": ("krea2", _both_factored),
    "FLUX.2-klein": ("flux2_klein_4b", lambda path, folder: flux2.make_lora(path, folder, rank=5)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ADDED)
def test_a_lora_is_added_by_addmm(engine, folders, tmp_path, kind, dtype):
    model, make = ADDED[kind]
    folder = folders(model)
    path = make(tmp_path / "lora.safetensors", folder)
    plain = _merged(engine, model, folder, dtype)
    for strength in (1.0, -0.7):
        ours = _merged(engine, model, folder, dtype, (path, strength))
        _check(ours, _added(plain, path, strength), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_omnigen2_multiplies_in_the_files_dtype(engine, folders, tmp_path, stored, dtype):
    folder = folders("omnigen2")
    path = omnigen2.make_lora(tmp_path / "lora.safetensors", folder, rank=5, dtype=stored)
    plain = _merged(engine, "omnigen2", folder, dtype)
    for strength in (1.0, -0.7):
        theirs = dict(plain)
        for name, own in _pairs(load_file(path)).items():
            change = strength * (own["lora_B"] @ own["lora_A"])
            theirs[name] = plain[name] + change.to(plain[name].dtype)
        _check(_merged(engine, "omnigen2", folder, dtype, (path, strength)), theirs, plain)


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", LORAS)
def test_what_was_merged_is_taken_off_to_the_bit(engine, folders, tmp_path, model, dtype):
    folder, make = folders(model), LORAS[model].make_lora
    first = make(tmp_path / "first.safetensors", folder, rank=3)
    second = make(tmp_path / "second.safetensors", folder, rank=5, seed=2)
    plain = _merged(engine, model, folder, dtype)
    alone = _merged(engine, model, folder, dtype, (first, 0.7))
    _merged(engine, model, folder, dtype, (first, 0.7), (second, -1.0))
    _merged(engine, model, folder, dtype, (second, 0.3), recipe="trainer preview")
    again = _merged(engine, model, folder, dtype, (first, 0.7))
    back = _merged(engine, model, folder, dtype)
    # computed elsewhere than where the weights lie
    apart = _merged(Engine(AskedMachine("cpu:0")), model, folder, dtype, (first, 0.7))
    for name, value in plain.items():
        bits = BITS[value.dtype]
        assert torch.equal(apart[name].view(bits), alone[name].view(bits)), name
        assert torch.equal(back[name].view(bits), value.view(bits)), name
        assert torch.equal(again[name].view(bits), alone[name].view(bits)), name
