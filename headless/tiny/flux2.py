"""A tiny FLUX.2-dev and tiny kleins in AI Toolkit's folder layout, other layouts of them, and LoRAs for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from torch import nn
from transformers import MistralConfig, MistralModel, Qwen3Config, Qwen3Model

from ...pipelines.models.flux2.facts import MISTRAL, QWEN3
from ...pipelines.models.flux2.names import diffusers_modules
from ...pipelines.models.flux2.network import Flux2Transformer
from ...pipelines.parts.flux2_vae.files import diffusers_names
from ...pipelines.parts.flux2_vae.network import Flux2AutoEncoder
from .files import Tensors, read_part, write_tensors
from .qwen3_tokenizer import write_qwen3_tokenizer
from .spread import spread
from .tekken import make_tekken, write_tokenizer
from .toolkit_loras import LoRAOptions, write_lora

FluxModel = Literal["flux2", "flux2_klein_4b", "flux2_klein_9b"]
FILES: dict[FluxModel, str] = {
    "flux2": "flux2-dev.safetensors",
    "flux2_klein_4b": "flux-2-klein-base-4b.safetensors",
    "flux2_klein_9b": "flux-2-klein-base-9b.safetensors",
}
VAE_FILE = "ae.safetensors"

# Widths are tiny, and everything that tensors do not tell is as in the real model, so that single files of this one can
# be understood by the real one's constants: heads of 128 channels in both transformer and text encoder, four rotary
# axes of equal size, one layer of the text encoder more than is read.
_HEAD = 128
# klein 9B is klein 4B, wider and deeper
_HEADS: dict[FluxModel, int] = {"flux2": 2, "flux2_klein_4b": 1, "flux2_klein_9b": 2}
_TEXT_HIDDEN = 32
_METADATA = {"format": "pt"}


def make_checkpoint(folder: Path, model: FluxModel = "flux2", seed: int = 0) -> Path:
    """Writes a checkpoint of a few megabytes in bfloat16; returns the folder."""
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        transformer = Flux2Transformer(
            context_in_dim=3 * _TEXT_HIDDEN,
            hidden_size=_HEADS[model] * _HEAD,
            num_heads=_HEADS[model],
            depth=1,
            depth_single_blocks=2,
            guidance_embed=model == "flux2",
        )
        vae = Flux2AutoEncoder(block_out_channels=(32, 32, 32, 64), layers_per_block=1)
        parts = {FILES[model]: spread(transformer), VAE_FILE: spread(vae)}
        text_encoder = spread(_text_encoder(model))
        # statistics of latents, which a new model has as 0 and 1
        vae.bn.running_mean = torch.randn(128) * 0.1
        vae.bn.running_var = torch.rand(128) + 0.5
    finally:
        torch.set_rng_state(rng_state)
    for name, part in parts.items():
        write_tensors(folder / name, _bfloat16(part), _METADATA)
    cast("Any", text_encoder.to(torch.bfloat16)).save_pretrained(folder / "text_encoder")
    (write_tokenizer if model == "flux2" else write_qwen3_tokenizer)(folder / "tokenizer")
    return folder


def make_lora(path: Path, folder: Path, **options: Unpack[LoRAOptions]) -> Path:
    """Writes a LoRA as AI Toolkit saves it, for every Linear of the blocks; returns the path.

    Args:
        path: the file.
        folder: the checkpoint that it fits.
        options: see :class:`LoRAOptions`; ``size`` is divided by 4.
    """
    options["size"] = options.get("size", 0.5) / 4
    return write_lora(path, trained_layers(folder), model_of(folder), "diffusion_model", **options)


def trained_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of the layers that AI Toolkit trains by default."""
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in read_file(folder, FILES[model_of(folder)]).items()
        if name.startswith(("double_blocks.", "single_blocks.")) and value.ndim == 2
    }


def model_of(folder: Path) -> FluxModel:
    return next(model for model, file in FILES.items() if (folder / file).is_file())


def read_file(folder: Path, name: str) -> Tensors:
    from safetensors.torch import load_file

    return load_file(folder / name)


def write_diffusers(folder: Path, checkpoint: Path) -> Path:
    """The same weights in diffusers' folder layout; returns the folder."""
    model = model_of(checkpoint)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(checkpoint / part, folder / part)
    tensors = diffusers_transformer(read_file(checkpoint, FILES[model]))
    write_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, _METADATA)
    transformer = {
        "_class_name": "Flux2Transformer2DModel", "attention_head_dim": _HEAD, "num_attention_heads": _HEADS[model],
        "axes_dims_rope": [32] * 4, "rope_theta": 2000, "in_channels": 128, "joint_attention_dim": 3 * _TEXT_HIDDEN,
        "num_layers": 1, "num_single_layers": 2, "mlp_ratio": 3.0, "guidance_embeds": model == "flux2", "eps": 1e-6,
        "patch_size": 1, "out_channels": None, "timestep_guidance_channels": 256,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKLFlux2", "in_channels": 3, "out_channels": 3, "latent_channels": 32,
        "block_out_channels": [32, 32, 32, 64], "layers_per_block": 1, "patch_size": [2, 2], "batch_norm_eps": 1e-4,
        "use_quant_conv": True, "use_post_quant_conv": True, "norm_num_groups": 32, "act_fn": "silu",
    }  # fmt: skip
    own = read_file(checkpoint, VAE_FILE)
    theirs = diffusers_names(levels=4, layers=2)
    named = {}
    for name, value in own.items():
        module, _, leaf = name.rpartition(".")
        linear = ".attn_1." in module and value.ndim == 4
        named[f"{theirs.get(module, module)}.{leaf}"] = value[:, :, 0, 0] if linear else value
    write_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", named, _METADATA)
    for part, config in (("transformer", transformer), ("vae", vae)):
        (folder / part / "config.json").write_text(json.dumps(config, indent=2))
    pipeline = "Flux2Pipeline" if model == "flux2" else "Flux2KleinPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.36.0"}))
    return folder


def diffusers_transformer(tensors: Tensors) -> Tensors:
    """Released tensors in diffusers' names: queries, keys and values apart, the last modulation's halves swapped."""
    named: Tensors = {}
    for theirs, pieces in diffusers_modules(tensors).items():
        rows = []
        for piece in pieces:
            leaf = "scale" if piece.module.endswith("_norm") else "weight"
            if f"{piece.module}.{leaf}" in tensors:
                value = tensors[f"{piece.module}.{leaf}"]
                rows.append(value[slice(*piece.rows(len(value)))])
        if rows:
            named[f"{theirs}.weight"] = torch.cat(rows)
    return named


def write_text_encoder(path: Path, checkpoint: Path) -> Path:
    """The text encoder as ComfyUI has it: pruned, Mistral with its tokenizer inside; returns the path."""
    mistral = model_of(checkpoint) == "flux2"
    last = 30 if mistral else 27
    tensors = {
        f"model.{name}": value
        for name, value in read_part(checkpoint, "text_encoder").items()
        if name != "norm.weight" and not any(name.startswith(f"layers.{n}.") for n in range(last, last + 9))
    }
    if mistral:
        tensors["tekken_model"] = torch.frombuffer(bytearray(make_tekken()), dtype=torch.uint8)
    else:
        tensors["model.norm.weight"] = torch.ones(_TEXT_HIDDEN, dtype=torch.bfloat16)
    return write_tensors(path, tensors, _METADATA)


def write_split_lora(path: Path, lora: Path, checkpoint: Path) -> Path:
    """A LoRA of :func:`make_lora` in diffusers' names: what fused layers share is copied; returns the path."""
    from safetensors.torch import load_file

    pairs = load_file(lora)
    tensors: Tensors = {}
    for theirs, pieces in diffusers_modules(trained_layers(checkpoint)).items():
        (piece, *others) = pieces
        down, up = (pairs.get(f"diffusion_model.{piece.module}.{leaf}.weight") for leaf in ("lora_A", "lora_B"))
        if others or down is None or up is None:
            continue
        tensors[f"transformer.{theirs}.lora_A.weight"] = down
        tensors[f"transformer.{theirs}.lora_B.weight"] = up[slice(*piece.rows(len(up)))]
    return write_tensors(path, tensors, _METADATA)


def _text_encoder(model: FluxModel) -> nn.Module:
    facts = MISTRAL if model == "flux2" else QWEN3
    sizes = {
        "vocab_size": 512,
        "hidden_size": _TEXT_HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": (facts.layers or 0) + 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "sliding_window": None,
        **facts.constants,
    }
    return MistralModel(MistralConfig(**sizes)) if model == "flux2" else Qwen3Model(Qwen3Config(**sizes))


def _bfloat16(part: nn.Module) -> Tensors:
    return {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in part.state_dict().items()
    }
