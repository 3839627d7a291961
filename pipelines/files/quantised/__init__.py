"""Files whose weights have scales beside them: each weight and its scales become one packed tensor.

A value is the small value times its scale, in float32. What a file says of its layers is in :mod:`.said`, the formats
are in :mod:`.formats`, and what other tools write in their own way, which is not read, in :mod:`.other_tools`. A float8
weight without a scale is a plain tensor where nothing is said of its layer. Scales of activations are for products in
few bits: everything is computed in the run's dtype here, and they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ... import files
from ...errors import FileError
from ...words import printable, shown
from ..header import FileStamp, Header, TensorInfo
from .formats import FORMATS, INSTEAD, SCALES, TOTAL, Quantised, packed, quantised
from .other_tools import check_others
from .said import MARKER, QUANT, Said, said_of_layers

if TYPE_CHECKING:
    import torch

    from ..packed import PackedTensor

_INPUT_SCALES = (".input_scale", ".scale_input")


@dataclass(frozen=True)
class _Contents:
    header: Header
    weights: Mapping[str, Quantised]  # those that have scales
    paths: Mapping[str, Path]  # where each tensor lies


def read_header(path: Path | Sequence[Path], unsaid: str = "") -> Header:
    """As :func:`...files.read_header`, of one file or several that belong together: a weight and its scale may lie in
    different ones. Weights with scales have a dtype of ``SCALED_TYPES`` or ``GROUPED_TYPES``, and what describes them
    is not among the tensors.

    Args:
        path: the files; the header is called after the first.
        unsaid: the format, a key of :data:`.formats.FORMATS`, of layers with two scales of which no file says one.

    Raises:
        FileError: likewise; or weights are quantised in a way that is not read, or a scale is missing or damaged.
    """
    return _contents(_stamps(path), unsaid).header


def read_tensors(
    path: Path | Sequence[Path], names: Sequence[str], unsaid: str = ""
) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """As :func:`...files.read_tensors`, of the same files, mapped where that can be; weights with scales are packed."""
    stamps = _stamps(path)
    contents = _contents(stamps, unsaid)
    for own in (stamp.path for stamp in stamps):
        own_names = [name for name in names if contents.paths.get(name) == own]
        for name, value in files.read_tensors(own, own_names, maps=True):
            weight = contents.weights.get(name)
            if weight is None:
                yield name, value
                continue
            scales = _read(contents, weight.scale)
            total = None if weight.total is None else _read(contents, weight.total)
            yield name, packed(weight, cast("torch.Tensor", value), scales, total, contents.paths[weight.scale].name)


def _stamps(path: Path | Sequence[Path]) -> tuple[FileStamp, ...]:
    return tuple(map(FileStamp.of, [path] if isinstance(path, Path) else path))


def _read(contents: _Contents, key: str) -> torch.Tensor:
    ((_, value),) = files.read_tensors(contents.paths[key], [key])
    return cast("torch.Tensor", value)


# the scales are many small tensors, and a file is asked several times before a run
@lru_cache(maxsize=16)
def _contents(stamps: tuple[FileStamp, ...], unsaid: str) -> _Contents:
    headers = [files.read_header(stamp.path) for stamp in stamps]
    stored = {key: info for header in headers for key, info in header.tensors.items()}
    paths = {key: header.path for header in headers for key in header.tensors}
    said = {layer: one for header in headers for layer, one in said_of_layers(header, stored).items()}
    if unsaid:
        layers = (key.removesuffix(TOTAL) for key in stored if key.endswith(TOTAL))
        said = {layer: Said(unsaid) for layer in layers} | said
    check_others(stored, paths, said)
    scales = {
        key.removesuffix(ending): key for key in stored for ending in SCALES if key.endswith(ending)
    }  # layer -> the name of its scales
    for layer, one in said.items():
        name = paths.get(f"{layer}.weight", stamps[0].path).name
        if one.format not in FORMATS:
            raise FileError(f"{name!r}: {shown(layer)} is in {printable(one.format)}, which is not read. {INSTEAD}")
        if layer not in scales:
            raise FileError(f"{name!r} is damaged: the scale of {shown(layer)} is missing. Download it again.")
    weights = {
        f"{layer}.weight": quantised(stored, layer, key, said.get(layer), f"{paths[key].name!r}: ")
        for layer, key in scales.items()
    }
    surplus = {layer + ending for layer in scales for ending in (*_INPUT_SCALES, QUANT, TOTAL)} | {*scales.values()}
    tensors = {
        key: TensorInfo(weights[key].qtype, weights[key].shape) if key in weights else info
        for key, info in stored.items()
        if key not in surplus and key.rpartition(".")[2] != MARKER
    }
    return _Contents(Header(stamps[0].path, tensors, headers[0].metadata), weights, paths)
