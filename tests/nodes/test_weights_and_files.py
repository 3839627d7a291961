"""Kinds of weights that users have, by the row of the list that they were found in: read alike, or refused by name.

The other tests of files go deeper, each for its own kind; here every row can be found.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_aitk.headless.tiny import containers, grouped
from comfyui_aitk.headless.tiny.files import read_part, write_tensors
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.choice import DEFAULT
from rendering import put_into_cache, render
from safetensors.torch import load_file

KLEIN, KLEIN_FILES = "flux2_klein_4b", {"encoder": "encoder.safetensors", "autoencoder": "ae.safetensors"}
LUMINA, LUMINA_FILES = "lumina2", {"encoder": "gemma.safetensors", "autoencoder": "ae.safetensors"}


def _all_in_one(encoder: str) -> Callable[[Any], dict]:
    def change(own) -> dict:
        saved = {
            f"model.diffusion_model.{k}": v
            for k, v in load_file(own.file("diffusion_models", "klein.safetensors")).items()
        }
        saved |= {f"vae.{k}": v for k, v in load_file(own.file("vae", "ae.safetensors")).items()}
        for name, value in load_file(own.file("text_encoders", "encoder.safetensors")).items():
            saved[f"text_encoders.{encoder}.transformer.{name}"] = value
        saved[f"text_encoders.{encoder}.logit_scale"] = torch.tensor(4.6055)
        write_tensors(own.file("checkpoints", "saved.safetensors"), saved, {"prompt": "{}"})
        return own.chosen(KLEIN, "saved.safetensors")

    return change


def _encoder_in_gguf(own) -> dict:
    tensors = read_part(own.folder / "diffusers" / "klein", "text_encoder")
    layers = {name.removeprefix("model."): value for name, value in tensors.items() if "lm_head" not in name}
    containers.write_gguf_text_encoder(own.file("text_encoders", "q.gguf"), layers, "BF16", "qwen3")
    return own.chosen(KLEIN, "klein.safetensors", **KLEIN_FILES | {"encoder": "q.gguf"})


def _parts(stem: str, directory: str, kind: str, name: str, model: str, files: dict, role: str = "") -> Callable:
    """A file of ComfyUI's in three numbered ones, of which the second is chosen."""

    def change(own) -> dict:
        tensors = load_file(own.file(kind, name))
        names, file = list(tensors), f"{directory}{stem}-0000{{}}-of-00003.safetensors"
        for number in range(3):
            write_tensors(own.file(kind, file.format(number + 1)), {n: tensors[n] for n in names[number::3]}, {})
        own.file(kind, name).unlink()
        return own.chosen(
            model,
            file.format(2) if not role else "klein.safetensors",
            **files | ({role: file.format(2)} if role else {}),
        )

    return change


def _folder(*changes: Callable[[Path], object]) -> Callable[[Any], dict]:
    def change(own) -> dict:
        for one in changes:
            one(own.folder / "diffusers" / "lumina")
        return own.chosen(LUMINA, "lumina")

    return change


def _renamed(suffix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for part in ("transformer", "text_encoder", "vae"):
            (file,) = (folder / part).glob("*.safetensors")
            file.rename(file.with_name(f"{file.stem}{suffix}.safetensors"))

    return change


def _sharded(shard: str, index: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for part in ("transformer", "text_encoder", "vae"):
            (file,) = (folder / part).glob("*.safetensors")
            tensors, where = load_file(file), {}
            for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
                name = shard.format(file.stem, number)
                write_tensors(folder / part / name, {key: tensors[key] for key in names}, {})
                where |= dict.fromkeys(names, name)
            (folder / part / index.format(file.stem)).write_text(json.dumps({"weight_map": where}))
            file.unlink()

    return change


def _linked(own) -> dict:
    store = own.folder.parent / "store"
    (own.folder / "diffusers" / "lumina").rename(store)
    (own.folder / "diffusers" / "lumina").symlink_to(store, target_is_directory=True)
    return own.chosen(LUMINA, "lumina")


def _folder_of_links(own) -> dict:
    folder, store = own.folder / "diffusers" / "lumina", own.folder.parent / "store"
    folder.rename(store)
    for file in store.rglob("*.*"):
        target = folder / file.relative_to(store)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    return own.chosen(LUMINA, "lumina")


def _one_folder_of_two_kinds(linked: str) -> Callable[[Any], dict]:
    def change(own) -> dict:
        checkpoints = own.folder / "checkpoints"
        if linked == "folder":
            checkpoints.rmdir()
            checkpoints.symlink_to(own.folder / "diffusion_models", target_is_directory=True)
        else:
            (checkpoints / "lumina.safetensors").symlink_to(own.file("diffusion_models", "lumina.safetensors"))
        return own.chosen(LUMINA, "lumina.safetensors", **LUMINA_FILES | {"autoencoder": "lumina_ae.safetensors"})

    return change


def _with_metadata(metadata: object) -> Callable[[Any], dict]:
    def change(own) -> dict:
        path = own.file("diffusion_models", "lumina.safetensors")
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.dumps(json.loads(raw[8 : 8 + length]) | {"__metadata__": metadata}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
        return own.chosen(LUMINA, "lumina.safetensors", **LUMINA_FILES | {"autoencoder": "lumina_ae.safetensors"})

    return change


def _no_maps(own) -> dict:
    containers.write_pth(own.file("diffusion_models", "lumina.pth"), own.folder / "diffusers" / "lumina")
    with pytest.MonkeyPatch.context() as patch:

        def no_map(*_: object, **__: object) -> None:
            raise RuntimeError("unable to mmap 24 bytes from file </home/someone/x>: No such device (19)")

        patch.setattr("mmap.mmap", no_map)
        patch.setattr("torch.UntypedStorage.from_file", no_map)
        return own.chosen(LUMINA, "lumina.pth", **LUMINA_FILES | {"autoencoder": "lumina_ae.safetensors"})


def _cached(reference: bytes | None) -> Callable[[Any], dict]:
    """Lumina's repository in the hub's cache, its main branch called as given."""

    def change(own) -> dict:
        from huggingface_hub import constants

        folder, repository = own.folder / "diffusers" / "lumina", find_model(LUMINA).files.repository
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.*")}
        put_into_cache(Path(constants.HF_HUB_CACHE), repository, files)
        main = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / "main"
        main.unlink()
        if reference is not None:
            main.write_bytes(reference)
        return own.chosen(LUMINA, DEFAULT)

    return change


READ: dict[str, tuple[str, Callable[[Any], dict]]] = {
    "W01 all in one, ComfyUI's name of Qwen3 4B": (KLEIN, _all_in_one("qwen3_4b")),
    "W01 all in one, ComfyUI's name of Qwen3 8B": (KLEIN, _all_in_one("qwen3_8b")),
    "W05 a text encoder in GGUF": (KLEIN, _encoder_in_gguf),
    "W11 a text encoder in numbered files": (
        KLEIN,
        _parts("model", "", "text_encoders", "encoder.safetensors", KLEIN, KLEIN_FILES, "encoder"),
    ),
    "W11 a transformer in numbered files, in a folder of its own": (
        KLEIN,
        _parts("dit", "sub/", "diffusion_models", "klein.safetensors", KLEIN, KLEIN_FILES),
    ),
    "W20 a variant": (LUMINA, _folder(_renamed(".fp16"))),
    "W20 a variant of one's own name": (LUMINA, _folder(_renamed(".ema-only"))),
    "W20 a variant in shards": (
        LUMINA,
        _folder(_sharded("{}-0000{}-of-00002.fp16.safetensors", "{}.safetensors.index.fp16.json")),
    ),
    "W20 shards of names that are no numbers": (
        LUMINA,
        _folder(_sharded("{}_{}.safetensors", "{}.safetensors.index.json")),
    ),
    "S4 a linked folder": (LUMINA, _linked),
    "S4 a folder of links": (LUMINA, _folder_of_links),
    "S6 checkpoints and diffusion_models are one folder": (LUMINA, _one_folder_of_two_kinds("folder")),
    "S6 one file is linked into both": (LUMINA, _one_folder_of_two_kinds("file")),
    "F01 metadata with numbers": (LUMINA, _with_metadata({"step": 3, "loss": 0.5})),
    "F01 metadata with objects": (LUMINA, _with_metadata({"config": {"rank": [1, None]}})),
    "F01 metadata with half a surrogate": (LUMINA, _with_metadata({"title": "a\ud83db"})),
    "M1 a share without maps": (LUMINA, _no_maps),
    "H1 a cache without refs/main": (LUMINA, _cached(None)),
    "H1 a cache whose refs/main is empty": (LUMINA, _cached(b"")),
    "H1 a cache whose refs/main is noise": (LUMINA, _cached(b"\xff\xfe../../etc")),
}


@pytest.mark.parametrize("row", READ)
def test_it_holds_the_same_weights(own, expected, row):
    model, change = READ[row]
    found = change(own)
    whole = expected[model]
    assert {*found} <= {*whole}
    missing = [name for name in {*whole} - {*found} if "lm_head" not in name]
    assert not missing
    for name, value in found.items():
        assert torch.equal(value.float(), whole[name].float()), name


@pytest.mark.parametrize("row", ["S1 a linked folder of LoRAs", "S1 a linked LoRA"])
def test_linked_loras_are_listed_and_read(own, row):
    store, loras = own.folder.parent / "store", own.folder / "loras"
    outside = make_lora(store / "outside.safetensors", own.folder / "diffusers" / "lumina")
    loras.mkdir()
    if "folder" in row:
        (loras / "Lora").symlink_to(store, target_is_directory=True)
    else:
        (loras / "outside.safetensors").symlink_to(outside)
    (name,) = NODE_CLASS_MAPPINGS["ApplyAITKLoRA"].INPUT_TYPES()["required"]["lora_name"][0]
    assert name == ("Lora/" if "folder" in row else "") + "outside.safetensors"
    load = {"model": LUMINA, "weights": "lumina"}
    changed = render(load, lora={"lora_name": name}, steps=1)
    assert not torch.equal(changed[0], render(load, steps=1)[0])


def test_w15_a_folder_of_modelopt_in_float8_holds_the_values_times_their_scale(own):
    folder = own.folder / "diffusers" / "lumina" / "transformer"
    stored, values = load_file(folder / "diffusion_pytorch_model.safetensors"), {}
    for name in [name for name in stored if name.startswith("layers.0.") and stored[name].ndim == 2]:
        scale = stored[name].float().abs().max() / 448
        stored[name] = (stored[name].float() / scale).to(torch.float8_e4m3fn)
        values[name] = stored[name].float() * scale
        stored |= {f"{name}_scale": scale, f"{name.removesuffix('weight')}input_scale": torch.tensor(0.5)}
    write_tensors(folder / "diffusion_pytorch_model.safetensors", stored, {})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["x_embedder"]}
    (folder / "config.json").write_text(json.dumps(config))
    found = own.chosen(LUMINA, "lumina")
    assert len(values) > 4
    for name, value in values.items():
        assert torch.equal(found[f"transformer.{name}"], value)


# ---- quantised: the values of the format ----------------------------------------------------------------------------

GROUPED = {
    "W03 nvfp4 of ComfyUI": ("nvfp4", "new", 0.13),
    "W03 nvfp4 of Black Forest Labs": ("nvfp4", "metadata", 0.13),
    "W15 float8 with weight_scale_inv": ("blocks", "new", 0.04),
    "W15 float8 with a scale for each row": ("rows", "new", 0.04),
    "W15 mxfp8": ("mxfp8", "new", 0.04),
    "W15 int8": ("int8 rows", "metadata", 0.02),
    "W15 int8 with convrot": ("int8 convrot", "metadata", 0.02),
    "W15 convrot_w4a4": ("int4 convrot", "new", 0.2),
}


@pytest.mark.parametrize("row", GROUPED)
@pytest.mark.parametrize("kind", ["diffusion_models", "text_encoders"])
def test_it_holds_weights_that_are_near(own, expected, kind, row):
    """That the values are the formats' to the bit is in test_grouped_files.py."""
    stored, spelling, bound = GROUPED[row]
    file = "klein.safetensors" if kind == "diffusion_models" else "encoder.safetensors"
    grouped.write_grouped(own.file(kind, file), own.file(kind, file), stored, spelling)
    found = own.chosen(KLEIN, "klein.safetensors", **KLEIN_FILES)
    changed = 0
    for name, value in found.items():
        exact = expected[KLEIN][name].float()
        if not torch.equal(value.float(), exact):
            changed += 1
            assert (value.float() - exact).norm() / exact.norm() < bound, name
    assert changed > 5
