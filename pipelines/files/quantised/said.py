"""What ComfyUI's files say of their layers, in three spellings.

* old: nothing is said; the scale is ``scale_weight``, and an empty tensor ``scaled_fp8`` marks the part;
* new: a tensor ``comfy_quant`` of each layer holds JSON, ``{"format": ...}``;
* the same JSON for all layers in the file's metadata, ``_quantization_metadata``: ``{"layers": {name: {...}}}``; the
  names may lack the part's prefix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ... import files
from ...errors import FileError
from ...words import cut, shown
from ..block_types import ROTATIONS

if TYPE_CHECKING:
    import torch

    from ..header import Header, TensorInfo

MARKER = "scaled_fp8"
QUANT = ".comfy_quant"
_METADATA = "_quantization_metadata"
_ROTATION = 256  # ComfyUI's, where it is not said
_MOST_BYTES = 1 << 16  # of what is said of one layer
_MOST_STEPS = 32  # of a name, between its dots


@dataclass(frozen=True)
class Said:
    """What is said of a layer.

    Attributes:
        format: ComfyUI's name, or another text.
        rotation: how many neighbours in a row were turned together (``convrot``); 0 is none.
    """

    format: str
    rotation: int = 0


def said_of_layers(header: Header, stored: Mapping[str, TensorInfo]) -> dict[str, Said]:
    """What a file says, by layer.

    Args:
        header: the file's.
        stored: the tensors of all files that belong together.

    Raises:
        FileError: it is no JSON, or names no such rotation as is read.
    """
    name = header.path.name
    layers = _in_metadata(header)
    endings = _by_ending([key for key in stored if key.endswith(".weight")] if layers else [])
    # pruned files keep what was said of the layers that are gone
    said = {key.removesuffix(".weight"): entry for layer, entry in layers.items() for key in endings(f"{layer}.weight")}
    keys = [key for key, info in header.tensors.items() if key.endswith(QUANT) and info.dtype == "U8"]
    for key in keys:
        if math.prod(header.tensors[key].shape) > _MOST_BYTES:
            raise FileError(f"{name!r} is damaged: {shown(key)} has more than {_MOST_BYTES:,} bytes.")
    for key, value in files.read_tensors(header.path, keys) if keys else ():
        text = bytes(cast("torch.Tensor", value).reshape(-1).numpy())
        said[key.removesuffix(QUANT)] = _object(text, f"{name!r} is damaged: {shown(key)}")
    return {layer: _said(entry, f"{name!r}: {shown(layer)}") for layer, entry in said.items()}


def _said(entry: Any, where: str) -> Said:
    if not isinstance(entry, dict):
        entry = {"format": entry}
    format_ = entry.get("format")
    name = format_ if isinstance(format_, str) else shown(format_)
    parameters = entry.get("params")
    # ComfyUI looks into the object first
    merged = (parameters if isinstance(parameters, dict) else {}) | entry
    if name != "convrot_w4a4" and not merged.get("convrot"):
        return Said(cut(name, 60))
    rotation = merged.get("convrot_groupsize", _ROTATION)
    if type(rotation) is not int or rotation not in ROTATIONS:
        raise FileError(
            f"{where} is said to be turned in groups of {shown(rotation)} (convrot_groupsize), and "
            f"{', '.join(map(str, ROTATIONS))} are read. Get another file of the model."
        )
    return Said(cut(name, 60), rotation)


def _by_ending(weights: Sequence[str]) -> Callable[[str], list[str]]:
    """Finds a name, or those that end with it behind a dot; with a table, since there may be many of both."""
    table: dict[str, list[str]] = {}
    for weight in weights:
        rest = weight
        for _ in range(_MOST_STEPS):
            table.setdefault(rest, []).append(weight)
            rest = rest.partition(".")[2]
            if not rest:
                break
    return lambda name: [name] if name in table.get(name, ()) else table.get(name, [])


def _in_metadata(header: Header) -> dict[str, Any]:
    """What the metadata say of layers."""
    text = header.metadata.get(_METADATA)
    where = f"{header.path.name!r} is damaged: its {_METADATA}"
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
