"""Text encoders and whole models in the files that ComfyUI's nodes and llama.cpp write: the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import containers, flux2, lumina2, omnigen2, z_image
from comfyui_aitk.headless.tiny.files import read_part, write_tensors
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.files.packed import dense
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.choice import Choice
from comfyui_aitk.pipelines.weights.choose import choose
from rendering import put_into_cache, render
from safetensors.torch import load_file

# model -> its text encoder as ComfyUI calls it; where its tokenizer is, on the hub and in the tiny checkpoint
CHECKPOINTS = {
    "flux2": ("mistral3_24b", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "tokenizer", ""),
    "flux2_klein_4b": ("qwen3_4b", "Qwen/Qwen3-4B", "tokenizer", ""),
    "flux2_klein_9b": ("qwen3_8b", "Qwen/Qwen3-8B", "tokenizer", ""),
    "zimage": ("qwen3_4b", "Tongyi-MAI/Z-Image-Turbo", "tokenizer", "tokenizer/"),
    "omnigen2": ("qwen25_3b", "OmniGen2/OmniGen2", "processor", "processor/"),
    "lumina2": ("gemma2_2b", "Alpha-VLLM/Lumina-Image-2.0", "tokenizer", "tokenizer/"),
}
ARCHITECTURES = {"mistral3_24b": "llama", "qwen3_4b": "qwen3", "qwen3_8b": "qwen3", "qwen25_3b": "qwen2vl"}
ARCHITECTURES |= {"gemma2_2b": "gemma2"}


def _make(folder: Path, model: str) -> Path:
    if model.startswith("flux2"):
        return flux2.make_checkpoint(folder, "flux2" if model == "flux2" else "flux2_klein_4b")
    return {"zimage": z_image, "omnigen2": omnigen2, "lumina2": lumina2}[model].make_checkpoint(folder)


def _single_files(folder: Path, checkpoint: Path, model: str) -> tuple[Path, Path, Path]:
    """Transformer, text encoder and autoencoder as ComfyUI has them."""
    if model == "zimage":
        return z_image.write_single_files(folder, checkpoint)
    if model == "omnigen2":
        return omnigen2.write_single_files(folder, checkpoint)
    encoder = folder / "encoder.safetensors"
    if model == "lumina2":
        dit, vae = folder / "dit.safetensors", folder / "ae.safetensors"
        containers.write_dit(dit, checkpoint)
        return dit, containers.write_gemma2(encoder, checkpoint), containers.write_ae(vae, checkpoint)
    (dit,) = checkpoint.glob("flux*.safetensors")
    return dit, flux2.write_text_encoder(encoder, checkpoint), checkpoint / "ae.safetensors"


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """Each model in single files, all in one as Save Checkpoint writes it, and its encoder as Save CLIP writes it."""
    folder = tmp_path_factory.mktemp("saved")
    for model, (encoder, *_) in CHECKPOINTS.items():
        checkpoint = _make(folder / "tiny" / model, model)
        dit, text, vae = _single_files(folder / "files" / model, checkpoint, model)
        for kind, file in (("diffusion_models", dit), ("text_encoders", text), ("vae", vae)):
            write_tensors(folder / model / kind / "own.safetensors", load_file(file), {})
        own = {
            ("" if name.endswith(("_model", "_json")) else f"{encoder}.transformer.") + name: value
            for name, value in load_file(text).items()
        }
        # Z-Image's and transformers' files may lack the first step, which ComfyUI's modules have
        own = {name.replace(".transformer.layers.", ".transformer.model.layers."): own[name] for name in own}
        saved = {
            **{f"model.diffusion_model.{name}": value for name, value in load_file(dit).items()},
            **{f"text_encoders.{name}": value for name, value in own.items()},
            **{f"vae.{name}": value for name, value in load_file(vae).items()},
            f"text_encoders.{encoder}.logit_scale": torch.tensor(4.6055),
        }
        write_tensors(folder / model / "checkpoints" / "saved.safetensors", saved, {"prompt": "{}"})
        clip = {name: value for name, value in own.items() if name.startswith(f"{encoder}.")}
        write_tensors(folder / model / "text_encoders" / "clip.safetensors", clip, {})
        layers = {
            name.removeprefix("model."): value
            for name, value in load_file(text).items()
            if name.removeprefix("model.").startswith(("layers.", "embed_tokens.", "norm."))
        }
        for quant in ("BF16", "Q8_0"):
            path = folder / model / "text_encoders" / f"{quant}.gguf"
            containers.write_gguf_text_encoder(path, layers, quant, ARCHITECTURES[encoder])
    return folder


def _weights(model: str, folder: Path, weights: str, **files: str) -> dict[str, torch.Tensor]:
    return dict(_read(model, folder, weights, files))


def _read(model: str, folder: Path, weights: str, files: Mapping) -> Iterator[tuple[str, torch.Tensor]]:
    choice = Choice(weights, files=files)
    for source in choose(find_model(model).files, choice, lambda kind: [folder / model / kind]).sources:
        assert source.role != "encoder" or source.tokenizer() is not None
        for name, value in source.read(source.tensor_infos()):
            yield f"{source.component}.{name}", dense(value, torch.float32)


@pytest.fixture
def tokenizers(everything, hub_cache) -> Path:
    """The tokenizers alone, as huggingface_hub keeps them."""
    for model, (_, repository, inside, folder) in CHECKPOINTS.items():
        files = {f"{folder}{file.name}": file for file in (everything / "tiny" / model / inside).iterdir()}
        if not (hub_cache / f"models--{repository.replace('/', '--')}").exists():
            put_into_cache(hub_cache, repository, files)
    return everything


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_what_comfyui_and_llama_cpp_write_holds_the_same_weights(tokenizers, model):
    rest = {"encoder": "own.safetensors", "autoencoder": "own.safetensors"}
    expected = _weights(model, tokenizers, "own.safetensors", **rest)
    found = {
        "Save Checkpoint": _weights(model, tokenizers, "saved.safetensors"),
        "Save CLIP": _weights(model, tokenizers, "own.safetensors", **rest | {"encoder": "clip.safetensors"}),
        "GGUF BF16": _weights(model, tokenizers, "own.safetensors", **rest | {"encoder": "BF16.gguf"}),
    }
    for case, tensors in found.items():
        assert {*tensors} - {*expected} == set(), case
        missing = {name for name in {*expected} - {*tensors} if "lm_head" not in name and "visual" not in name}
        assert not missing, case
        for name, value in tensors.items():
            # llama.cpp stores 1 more than Gemma's norms in float32, which has no place for the last bits of small ones
            near = 2**-23 if case.startswith("GGUF") and model == "lumina2" and "norm" in name else 0
            assert (value - expected[name]).abs().max() <= near, (case, name)


def test_rows_of_heads_are_put_back_as_transformers_does():
    from comfyui_aitk.pipelines.weights.layout import Place
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    stored = torch.arange(3 * 128 * 4.0).reshape(384, 4)
    theirs = LlamaTensorProcessor({})._reverse_permute_weights(stored.numpy(), 3, 3)
    assert torch.equal(Place("q", heads=3).cut(stored), torch.from_numpy(theirs.copy()))


@pytest.mark.parametrize("model", ["flux2", "lumina2"])
def test_an_encoder_in_gguf_gives_the_picture_of_its_weights(host, tokenizers, model):
    use_host(PlainHost(tokenizers / model, host.input, host.output, "cpu"))
    load = {"model": model, "weights": "own.safetensors", "vae": "own.safetensors"}
    choices = NODE_CLASS_MAPPINGS["LoadAITKModel"].INPUT_TYPES()["optional"]["text_encoder"][0]
    assert {"BF16.gguf", "Q8_0.gguf"} <= {*choices}
    (options,) = NODE_CLASS_MAPPINGS["AITKRuntimeOptions"]().make("none", "none")
    del options
    expected = render(load | {"text_encoder": "clip.safetensors", "dtype": "bfloat16"}, steps=1)
    found = render(load | {"text_encoder": "BF16.gguf", "dtype": "bfloat16"}, steps=1)
    assert torch.equal(found[0], expected[0])
    packed = render(load | {"text_encoder": "Q8_0.gguf", "dtype": "bfloat16"}, steps=1)
    assert not torch.equal(packed[0], expected[0])


def _vision(tensors: dict, top: str) -> dict:
    return tensors | {f"{top}visual.blocks.0.attn.qkv.weight": torch.zeros(4, 4)}


def test_files_of_other_kinds_are_named(host, everything, tmp_path):
    folder = tmp_path / "own"
    qwen3 = read_part(everything / "tiny" / "flux2_klein_4b", "text_encoder")
    qwen3 = {name.removeprefix("model."): value for name, value in qwen3.items()}
    encoders = folder / "text_encoders"
    seeing = {
        "vl.safetensors": _vision({f"model.language_model.{name}": qwen3[name] for name in qwen3}, "model."),
        "vl_comfy.safetensors": _vision({f"model.{name}": qwen3[name] for name in qwen3}, ""),
        "vl_tower.safetensors": _vision({f"model.{name}": qwen3[name] for name in qwen3}, "model."),
        "t5.safetensors": {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)},
        "model-00001-of-00010.safetensors": {f"model.{name}": qwen3[name] for name in list(qwen3)[:9]},
    }
    for name, tensors in seeing.items():
        write_tensors(encoders / name, tensors, {})
    containers.write_gguf_text_encoder(encoders / "vl.gguf", qwen3, "BF16", "qwen3vl")
    (folder / "diffusers").mkdir()
    (folder / "diffusers" / "klein").symlink_to(everything / "tiny" / "flux2_klein_4b", target_is_directory=True)
    use_host(PlainHost(folder, host.input, host.output, "cpu"))
    shard = "is part 1 of 10 of a model, and 'model-00002-of-00010.safetensors' is not beside it"
    for name in (*seeing, "vl.gguf"):
        message = shard if "of-00010" in name else "it is T5" if name.startswith("t5") else "it is Qwen3-VL, and this"
        with pytest.raises(AITKError) as caught:
            render({"model": "flux2_klein_4b", "weights": "klein", "text_encoder": name}, steps=1)
        assert message in str(caught.value), str(caught.value)
