"""ComfyUI's scaled float8 files: a layer's ``weight`` in float8 with one scale, beside layers that are plain.

A value is the float8 value times the scale, in float32. The scale has one of two names, and what is said of the layers
has three spellings:

* old: the scale is ``scale_weight``, and an empty tensor ``scaled_fp8`` marks the part;
* new: the scale is ``weight_scale``, and a tensor ``comfy_quant`` of each layer holds JSON, ``{"format": ...}``;
* the same JSON for all layers in the file's metadata, ``_quantization_metadata``: ``{"layers": {name: {...}}}``; the
  names may lack the part's prefix.

A float8 weight without a scale is a plain tensor where nothing is said of its layer. Scales of activations
(``scale_input``, ``input_scale``) are for products in float8: everything is computed in the run's dtype here, and they
are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import files
from ..errors import FileError
from .block_types import SCALED_TYPES
from .header import FileStamp, Header, TensorInfo

if TYPE_CHECKING:
    import torch

    from .packed import PackedTensor

_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_SCALES = (".weight_scale", ".scale_weight")
_INPUT_SCALES = (".input_scale", ".scale_input")
_MARKER = "scaled_fp8"
_QUANT = ".comfy_quant"
_INSTEAD = "Get the bfloat16 file, a scaled float8 file or a GGUF file."


@dataclass(frozen=True)
class _Contents:
    header: Header
    scales: Mapping[str, float]  # of the weights that have one


def read_header(path: Path) -> Header:
    """As :func:`..files.read_header`, for files of any kind: scaled weights have a dtype of ``SCALED_TYPES``, and what
    describes them is not among the tensors.

    Raises:
        FileError: likewise; or weights are quantised in a way that is not read, or a scale is missing or damaged.
    """
    return _contents(FileStamp.of(path)).header


def read_tensors(path: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """As :func:`..files.read_tensors`; scaled weights come as ScaledTensor, which is never a map of the file."""
    scales = _contents(FileStamp.of(path)).scales
    for name, value in files.read_tensors(path, names):
        yield name, _scaled(cast("torch.Tensor", value), scales[name]) if name in scales else value


def _scaled(value: torch.Tensor, scale: float) -> PackedTensor:
    from .packed import ScaledTensor

    return ScaledTensor.of(value.clone(), scale)


# the scales are many small tensors, and a file is asked several times before a run
@lru_cache(maxsize=16)
def _contents(stamp: FileStamp) -> _Contents:
    path, header = stamp.path, files.read_header(stamp.path)
    formats = _described(header)
    scale_keys: dict[str, str] = {}
    for key in header.tensors:
        for ending in _SCALES:
            if key.endswith(ending):
                scale_keys[key.removesuffix(ending)] = key
    for layer in formats:
        if layer not in scale_keys:
            raise FileError(f"{path.name!r} is damaged: the scale of {layer!r} is missing. Download it again.")
    for layer, key in scale_keys.items():
        _check(header, layer, key, formats.get(layer))
    surplus = {layer + ending for layer in scale_keys for ending in (*_INPUT_SCALES, _QUANT)} | {*scale_keys.values()}
    names = {stored: ours for ours, stored in SCALED_TYPES.items()}
    tensors: dict[str, TensorInfo] = {}
    for key, info in header.tensors.items():
        if key in surplus or key.rpartition(".")[2] == _MARKER:
            continue
        scaled = key.endswith(".weight") and key.removesuffix(".weight") in scale_keys
        tensors[key] = TensorInfo(names[info.dtype], info.shape) if scaled else info
    return _Contents(Header(path, tensors, header.metadata), _read_scales(path, scale_keys))


def _read_scales(path: Path, keys: Mapping[str, str]) -> dict[str, float]:
    """Weight -> its scale."""
    weights = {key: f"{layer}.weight" for layer, key in keys.items()}
    scales: dict[str, float] = {}
    for key, value in files.read_tensors(path, list(weights)):
        scales[weights[key]] = scale = float(cast("torch.Tensor", value))
        if not math.isfinite(scale):
            raise FileError(f"{path.name!r} is damaged: the scale {key!r} is {scale}. Download it again.")
    return scales


def _check(header: Header, layer: str, key: str, described: str | None) -> None:
    """Raises FileError where a layer's weight or scale is not what is read here."""
    scale, weight = header.tensors[key], header.tensors.get(f"{layer}.weight")
    where = f"{header.path.name!r}: "
    if weight is None:
        raise FileError(f"{where}{key!r} is the scale of a weight that is missing. Download it again.")
    if weight.dtype not in SCALED_TYPES.values() or scale.dtype not in ("F32", "BF16", "F16"):
        raise FileError(
            f"{where}the weight of {layer!r} is {weight.dtype} with a scale of {scale.dtype}, which is not read: only "
            f"float8 with a float32 scale is. {_INSTEAD}"
        )
    if math.prod(scale.shape) != 1:
        raise FileError(
            f"{where}{key!r} has shape {list(scale.shape)}: scales of rows or blocks are not read, only one for a "
            f"whole weight. {_INSTEAD}"
        )
    if described is not None and _FORMATS[described] != weight.dtype:
        raise FileError(f"{where}{layer!r} is said to be {described}, and its weight is {weight.dtype}.")


def _described(header: Header) -> dict[str, str]:
    """Layer -> format, of those of which something is said; raises FileError where a format is not read."""
    name, weights = header.path.name, [key for key in header.tensors if key.endswith(".weight")]
    said: dict[str, Any] = {}
    for layer, entry in _layers(header).items():
        own = f"{layer}.weight"
        # pruned files keep what was said of the layers that are gone
        for key in [own] if own in header.tensors else [key for key in weights if key.endswith(f".{own}")]:
            said[key.removesuffix(".weight")] = entry
    keys = [key for key, info in header.tensors.items() if key.endswith(_QUANT) and info.dtype == "U8"]
    for key, value in files.read_tensors(header.path, keys) if keys else ():
        text = bytes(cast("torch.Tensor", value).reshape(-1).numpy())
        said[key.removesuffix(_QUANT)] = _object(text, f"{name!r} is damaged: {key!r}")
    formats: dict[str, str] = {}
    for layer, entry in said.items():
        formats[layer] = kind = str(entry.get("format")) if isinstance(entry, dict) else str(entry)
        if kind not in _FORMATS:
            raise FileError(f"{name!r} holds weights in {kind} (the first is {layer!r}), which is not read. {_INSTEAD}")
    return formats


def _layers(header: Header) -> dict[str, Any]:
    """What the metadata say of layers."""
    text = header.metadata.get("_quantization_metadata")
    where = f"{header.path.name!r} is damaged: its _quantization_metadata"
    layers = {} if text is None else _object(text, where).get("layers")
    if not isinstance(layers, dict):
        raise FileError(f"{where} names no layers.")
    return layers


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not valid JSON. Download it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{where} is no JSON object. Download it again.")
    return value
