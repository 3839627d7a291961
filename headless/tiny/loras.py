"""LoRAs for the tiny model as trainers and tools besides AI Toolkit save them, all from the same pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import torch

from .files import Tensors, read_part, write_tensors
from .names import QKV, original_dit, original_module

_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")
_EMBEDDERS = ("x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1")


class Pair(NamedTuple):
    """The change of one layer: up @ down * alpha / rank.

    Attributes:
        down: (rank, in).
        up: (out, rank).
        alpha: None is the rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / len(self.down)

    def delta(self) -> torch.Tensor:
        """What is added to the weight at strength 1: float32 of (out, in)."""
        return self.up.float() @ self.down.float() * self.scale


Pairs = Mapping[str, Pair]


class PairOptions(TypedDict, total=False):
    """How pairs are made.

    Attributes:
        rank: of every layer; 4.
        alpha: of every layer; 2.0. The factors alpha / rank differ where ranks do.
        dtype: of the matrices; bfloat16.
        ranks: module name -> rank, in place of ``rank``; 0 leaves the layer out.
        only: layers whose name contains one of these; by default all.
        seed: decides the values; 1.
        size: standard deviation of ``up``; 0.5. That of ``down`` is 1 / rank.
    """

    rank: int
    alpha: float | None
    dtype: torch.dtype
    ranks: Callable[[str], int] | None
    only: Collection[str]
    seed: int
    size: float


def make_pairs(folder: Path, *, embedders: bool = False, **options: Unpack[PairOptions]) -> dict[str, Pair]:
    """Original module name -> pair, for every layer of the transformer that kohya's ``lora_lumina`` trains.

    Args:
        folder: the diffusers folder that the LoRA fits.
        embedders: also those of kohya's ``embedder_dims``.
        options: see :class:`PairOptions`.
    """
    prefixes = (*_BLOCKS, "final_layer.", *(_EMBEDDERS if embedders else ()))
    return _pairs(_linear(original_dit(read_part(folder, "transformer")), prefixes), **options)


def make_text_pairs(folder: Path, **options: Unpack[PairOptions]) -> dict[str, Pair]:
    """Module name -> pair, for every layer of Gemma2."""
    return _pairs(_linear(read_part(folder, "text_encoder"), ("layers.",)), **options)


def write_kohya(
    path: Path,
    folder: Path,
    *,
    text_encoder: bool = False,
    embedders: bool = False,
    **options: Unpack[PairOptions],
) -> Path:
    """Writes a LoRA of kohya's ``networks.lora_lumina``; returns the path.

    Its pairs are :func:`make_pairs`' and :func:`make_text_pairs`' at the same arguments.

    Args:
        path: the file.
        folder: the diffusers folder that it fits.
        text_encoder: also Gemma2's half, which kohya trains unless told not to.
        embedders: see :func:`make_pairs`.
        options: see :class:`PairOptions`; an alpha of None writes none.
    """
    pairs = make_pairs(folder, embedders=embedders, **options)
    text_pairs = make_text_pairs(folder, **options) if text_encoder else {}
    return write_kohya_pairs(path, pairs, text_pairs, rank=options.get("rank", 4))


def write_kohya_pairs(path: Path, pairs: Pairs, text_pairs: Pairs | None = None, *, rank: int = 4) -> Path:
    """Like :func:`write_kohya`, with pairs that are there; ``rank`` goes into the metadata alone."""
    tensors: Tensors = {}
    for prefix, half in (("lora_unet", pairs), ("lora_te", text_pairs or {})):
        for module, pair in half.items():
            key = f"{prefix}_{module.replace('.', '_')}"
            tensors |= _named(key, pair, ("lora_down", "lora_up"), alpha=True)
    alpha = next((pair.alpha for pair in pairs.values()), None)
    return write_tensors(path, tensors, _kohya_metadata(path.stem, rank, alpha))


def write_comfyui(
    path: Path, pairs: Pairs, *, names: tuple[str, str] = ("lora_A", "lora_B"), alpha: bool = True
) -> Path:
    """Writes a LoRA with ComfyUI's keys, ``diffusion_model.`` and original names; returns the path.

    Args:
        path: the file.
        pairs: see :func:`make_pairs`.
        names: of the matrices; also in use is lora_down and lora_up.
        alpha: without, its factor goes into ``up``, which is exact where alpha / rank is a power of two.
    """
    tensors: Tensors = {}
    for module, pair in pairs.items():
        tensors |= _named(f"diffusion_model.{module}", pair, names, alpha)
    return write_tensors(path, tensors, {"format": "pt"})


def write_diffusers(path: Path, pairs: Pairs, folder: Path, *, alpha: bool = False) -> Path:
    """Writes the pairs in AI Toolkit's and diffusers' keys, with q, k and v apart; returns the path.

    Args:
        path: the file.
        pairs: see :func:`make_pairs`.
        folder: the diffusers folder, which tells how many rows each of q, k and v has.
        alpha: see :func:`write_comfyui`.
    """
    tensors: Tensors = {}
    rows = {name: len(value) for name, value in read_part(folder, "transformer").items() if value.ndim == 2}
    parts: dict[str, list[str]] = {}
    for module in sorted((name.removesuffix(".weight") for name in rows), key=_qkv_order):
        parts.setdefault(original_module(module), []).append(module)
    for original, pair in pairs.items():
        modules = parts[original]
        ups = pair.up.split([rows[f"{module}.weight"] for module in modules])
        for module, up in zip(modules, ups, strict=True):
            tensors |= _named(f"transformer.{module}", pair._replace(up=up), ("lora_A", "lora_B"), alpha)
    return write_tensors(path, tensors, {"format": "pt"})


def _qkv_order(module: str) -> int:
    return next((index for index, part in enumerate(QKV) if module.endswith(part)), 0)


def _linear(tensors: Tensors, prefixes: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in)."""
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in sorted(tensors.items())
        if name.startswith(prefixes) and value.ndim == 2
    }


def _pairs(
    modules: dict[str, tuple[int, int]],
    rank: int = 4,
    alpha: float | None = 2.0,
    dtype: torch.dtype = torch.bfloat16,
    ranks: Callable[[str], int] | None = None,
    only: Collection[str] = (),
    seed: int = 1,
    size: float = 0.5,
) -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(seed)
    wanted = tuple(only)
    pairs: dict[str, Pair] = {}
    for module, (rows, columns) in modules.items():
        own = rank if ranks is None else ranks(module)
        if own and (not wanted or any(part in module for part in wanted)):
            down = torch.randn(own, columns, generator=generator) / own
            up = torch.randn(rows, own, generator=generator) * size
            pairs[module] = Pair(down.to(dtype), up.to(dtype), alpha)
    return pairs


def _named(key: str, pair: Pair, names: tuple[str, str], alpha: bool) -> Tensors:
    up = pair.up if alpha else (pair.up.float() * pair.scale).to(pair.up.dtype)
    tensors = {f"{key}.{names[0]}.weight": pair.down, f"{key}.{names[1]}.weight": up}
    if alpha and pair.alpha is not None:
        tensors[f"{key}.alpha"] = torch.tensor(pair.alpha, dtype=pair.up.dtype)
    return tensors


def _kohya_metadata(name: str, rank: int, alpha: float | None) -> dict[str, str]:
    """What kohya's trainer tells of itself; the system prompt of the training is not among it."""
    return {
        "format": "pt",
        "modelspec.architecture": "lumina-2/lora",
        "modelspec.implementation": "https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        "modelspec.title": name,
        "ss_base_model_version": "lumina2",
        "ss_discrete_flow_shift": "6.0",
        "ss_logit_mean": "0.0",
        "ss_logit_std": "1.0",
        "ss_mode_scale": "1.29",
        "ss_model_prediction_type": "raw",
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps({"train_blocks": "all"}),
        "ss_network_dim": str(rank),
        "ss_network_module": "networks.lora_lumina",
        "ss_output_name": name,
        "ss_sd_model_name": "lumina2.safetensors",
        "ss_seed": "42",
        "ss_sigmoid_scale": "1.0",
        "ss_steps": "250",
        "ss_tag_frequency": json.dumps({"1_fox": {"t1ny": 3, "a red fox": 3}}),
        "ss_timestep_sampling": "nextdit_shift",
        "ss_weighting_scheme": "none",
    }
