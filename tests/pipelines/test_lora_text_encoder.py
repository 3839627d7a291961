"""The half of a LoRA that changes the text encoder: what is encoded again, what is kept, and what is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny.files import read_part
from comfyui_aitk.headless.tiny.loras import Pair, make_text_pairs, write_kohya
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.lora.file import open_lora
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import SampleResult, sample
from rendering import wanted
from safetensors.torch import save_file

MODEL = find_model("lumina2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PREFIXES = {
    "lora_te_": "_", "lora_te1_": "_", "text_encoder.": ".", "text_encoders.gemma2_2b.transformer.model.": ".",
}  # fmt: skip
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PlainMachine())


@pytest.fixture(scope="module")
def folder(models: Path) -> Path:
    return models / "diffusers" / "tiny"


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, Pair]:
    """Of every layer of the encoder, in numbers that both dtypes hold; attention has half the rank."""
    made = make_text_pairs(folder, ranks=lambda module: 2 if "self_attn" in module else 4)
    return {name: pair._replace(down=pair.down.float(), up=pair.up.float() / 8) for name, pair in made.items()}


@pytest.fixture(scope="module")
def kohya(folder: Path, tmp_path_factory) -> Path:
    return write_kohya(tmp_path_factory.mktemp("loras") / "both.safetensors", folder, text_encoder=True, size=0.1)


def with_lora(handle: PipelineHandle, path: Path, strength: float, application: str = "auto") -> PipelineHandle:
    file = open_lora(path, path.name, MODEL, handle.checkpoint)
    spec = (file.title, file.mergeable, file.parts)
    return handle.with_lora(LoraSpec(path.name, FileStamp.of(path), strength, application, *spec))


def encoder(engine: Engine, handle: PipelineHandle, recipe: str = "reference pipeline") -> tuple[Tensors, Tensors]:
    """The encoder's weights with the handle's LoRAs, and what its layers multiply by."""
    engine.apply_loras(wanted(engine, handle, recipe), "text_encoder", SilentObserver())
    with torch.no_grad(), engine.on_device(wanted(engine, handle), "text_encoder", SilentObserver()) as module:
        root = engine.model(handle).parts["text_encoder"].lora_root(module)
        linear = {name: layer for name, layer in root.named_modules() if hasattr(layer, "in_features")}
        dtype = DTYPES[handle.dtype]
        found = {name: layer(torch.eye(layer.in_features, dtype=dtype)).T for name, layer in linear.items()}
        return {name: value.clone() for name, value in root.state_dict().items()}, found


def run(
    engine: Engine, handle: PipelineHandle, recipe: str = "reference pipeline", prompt: str = "a fox"
) -> SampleResult:
    request = SampleRequest(recipe, prompt, "fog", width=64, height=64, steps=1, seed=3)
    return sample(engine, handle, request, SilentObserver())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_naming_changes_the_encoder_as_the_pairs_by_hand(engine, checkpoint, folder, pairs, tmp_path, prefix):
    tensors = {}
    for module, pair in pairs.items():
        key = prefix + module.replace(".", PREFIXES[prefix])
        tensors |= {f"{key}.lora_down.weight": pair.down, f"{key}.lora_up.weight": pair.up}
        tensors[f"{key}.alpha"] = torch.tensor(pair.alpha)
    path = tmp_path / "te.safetensors"
    save_file(tensors, path)
    base = PipelineHandle("lumina2", checkpoint, "float32")
    before, _ = encoder(engine, base)
    weights = read_part(folder, "text_encoder")
    for strength, application in ((1.0, "merged"), (-0.5, "live")):
        handle = with_lora(base, path, strength, application)
        assert handle.loras[0].parts == ("text_encoder",)
        _, found = encoder(engine, handle)
        assert len(found) == len(pairs) == 21
        for module, pair in pairs.items():
            expected = weights[f"{module}.weight"].float() + strength * pair.delta()
            assert torch.allclose(found[module], expected, atol=1e-5), module
    after, _ = encoder(engine, base)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", MODEL.recipes)
def test_a_strength_is_encoded_once_and_the_embeddings_without_the_lora_are_kept(
    engine, checkpoint, kohya, dtype, recipe
):
    base = PipelineHandle("lumina2", checkpoint, dtype)
    before, _ = encoder(engine, base, recipe)
    # no earlier test has seen this prompt
    prompt = f"{dtype} {recipe}"
    without = run(engine, base, recipe, prompt)
    whole = run(engine, with_lora(base, kohya, 1.0), recipe, prompt)
    half = run(engine, with_lora(base, kohya, 0.5), recipe, prompt)
    again = run(engine, with_lora(base, kohya, 1.0), recipe, prompt)
    taken_off = run(engine, base, recipe, prompt)
    # whoever encodes something else now has the encoder without the LoRA
    other = run(engine, base, recipe, f"{prompt}, another")
    encoded = [result.report["work"]["texts_encoded"] for result in (without, whole, half, again, taken_off)]
    assert encoded[1:] == [2, 2, 0, 0]
    assert other.report["work"]["texts_encoded"] == 1
    assert torch.equal(whole.latent, again.latent)
    assert torch.equal(without.latent, taken_off.latent)
    assert not torch.equal(whole.latent, half.latent)
    after, _ = encoder(engine, base, recipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("recipe", MODEL.recipes)
def test_both_halves_of_a_kohya_file_count_in_every_recipe(engine, checkpoint, kohya, folder, tmp_path, recipe):
    """Neither half is left out: the picture of both is neither half's alone."""
    base = PipelineHandle("lumina2", checkpoint, "float32")
    alone = write_kohya(tmp_path / "transformer.safetensors", folder, size=0.1)
    both, half, without = (
        run(engine, handle, recipe) for handle in (with_lora(base, kohya, 1.0), with_lora(base, alone, 1.0), base)
    )
    assert (both.latent - half.latent).norm() > 1e-3 * without.latent.norm()
    assert (half.latent - without.latent).norm() > 1e-3 * without.latent.norm()
    if recipe != "sd-scripts":
        # in float32 it does not matter how; sd-scripts merges into the weights as the file stores them
        merged, live = (run(engine, with_lora(base, kohya, 1.0, how), recipe) for how in ("merged", "live"))
        assert (merged.latent - live.latent).norm() < 1e-5 * without.latent.norm()


def test_on_a_quantised_encoder_the_half_is_live(engine, checkpoint, kohya, folder):
    options = RuntimeOptions(text_encoder_quantization="qint8")
    base = PipelineHandle("lumina2", checkpoint, "float32", options)
    _, before = encoder(engine, base)
    _, found = encoder(engine, with_lora(base, kohya, 0.5), "trainer preview")
    for module, pair in make_text_pairs(folder, size=0.1).items():
        assert torch.allclose(found[module], before[module] + 0.5 * pair.delta(), atol=1e-5), module
