"""Safetensors files: what their header says, whether they are whole, and their tensors.

The header is read and checked before anything else touches a file, so that a truncated download, an HTML page or a
pickle gives an error that says so, and not one of a parser's. The library's own reader maps whole files, always, and
takes metadata of texts alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..words import shown
from .content import PICKLE, SAFETENSORS, START, ZIP, describe
from .header import BITS, MAX_DIMS, MAX_NAME, MAX_TENSORS, FileStamp, Header, TensorInfo
from .spans import read_spans, read_together

if TYPE_CHECKING:
    import torch

# torch's names; those of less than a byte, and those that older versions lack, are read as bytes
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_ALIGNMENT = 64  # bytes, at which torch begins a tensor of its own in a CPU's memory

# kinds of files that a user may take for tensors
_UNSAFE = {kind: f"{kind}; only safetensors files are loaded, since a pickle can run code" for kind in (PICKLE, ZIP)}


@dataclass(frozen=True)
class _Layout:
    """A checked header, and where each tensor's bytes are: name -> first byte in the file, number of bytes."""

    header: Header
    spans: Mapping[str, tuple[int, int]]


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file; reads nothing else of it.

    Raises:
        FileError: the file is missing, no safetensors file, damaged, or shorter or longer than its header says.
    """
    return _layout(FileStamp.of(path)).header


def read_tensors(
    path: Path, names: list[str] | None = None, *, maps: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a file one by one, on the CPU, in their stored dtype.

    What torch has no dtype for comes as its bytes, uint8 of one dimension.

    Args:
        path: a safetensors file that :func:`read_header` accepts.
        names: which ones; all of them by default.
        maps: whether they may lie in the file's own pages; else they have memory of their own.

    Raises:
        FileError: as :func:`read_header`; or the file cannot be read, or was changed while it was read.
    """
    import torch

    layout = _layout(FileStamp.of(path))
    for name, raw in read_spans(path, layout.spans, names, maps=maps):
        info = layout.header.tensors[name]
        dtype = _DTYPES.get(info.dtype)
        yield name, raw if dtype is None else raw.view(getattr(torch, dtype)).reshape(info.shape)


def read_in_runs(
    path: Path, names: list[str], check: Callable[[], None]
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Yields the tensors of a small file, which is read as a whole: those that lie behind each other in one dtype.

    Args:
        path: a safetensors file that :func:`read_header` accepts.
        names: which tensors.
        check: called now and then; raises to interrupt.

    Yields:
        All values of a run, [values], and its tensors, which share their memory where they are aligned in it, where
        torch has their dtype; else the bytes of one tensor.

    Raises:
        FileError: as :func:`read_tensors`.
    """
    import torch

    layout = _layout(FileStamp.of(path))
    infos, spans = layout.header.tensors, layout.spans
    if any(name not in spans for name in names):
        raise FileError(f"{path.name!r} was changed while it was read. Run again.")
    # an empty one lies where the next one does
    ordered = sorted(names, key=lambda name: (spans[name], name))
    if not ordered:
        return
    first = spans[ordered[0]][0]
    raw = read_together(path, first, sum(spans[ordered[-1]]), check)
    run: list[str] = []
    for name, following in zip(ordered, [*ordered[1:], None], strict=True):
        run.append(name)
        own = None if infos[name].dtype not in _DTYPES else infos[name].dtype
        if own and following and infos[following].dtype == own and spans[following][0] == sum(spans[name]):
            continue
        begin, end = spans[run[0]][0] - first, sum(spans[name]) - first
        values = raw[begin:end]
        if own:
            dtype = getattr(torch, _DTYPES[own])
            # such a beginning is odd, and allowed
            values = (values.clone() if begin % dtype.itemsize else values).view(dtype)
        pieces = values.split([math.prod(infos[one].shape) for one in run]) if own else [values]
        shaped = [piece.view(infos[one].shape) if own else piece for one, piece in zip(run, pieces, strict=True)]
        yield values, dict(zip(run, map(_aligned, shaped), strict=True))
        run = []


def _aligned(value: torch.Tensor) -> torch.Tensor:
    """The same where a tensor of its own would lie: kernels of products round by where a matrix begins."""
    return value if value.data_ptr() % _ALIGNMENT == 0 else value.clone()


# a file is asked several times before a run, and its header may hold the workflow that made it
@lru_cache(maxsize=32)
def _layout(stamp: FileStamp) -> _Layout:
    path, size = stamp.path, stamp.size
    name = path.name
    try:
        with path.open("rb") as file:
            start = file.read(START)
            length = int.from_bytes(start[:8], "little")
            kind = describe(start)
            if kind is not None and kind != SAFETENSORS:
                raise FileError(f"{name!r} is no safetensors file: it is {_UNSAFE.get(kind, kind)}.")
            if size < 10:
                raise FileError(f"{name!r} is no safetensors file: it has only {size} bytes. Download it again.")
            if not 2 <= length <= _MAX_HEADER:
                raise FileError(f"{name!r} is no safetensors file: it does not begin with a header length.")
            if 8 + length > size:
                raise FileError(
                    f"{name!r} is cut off: its header alone needs {8 + length:,} bytes, the file has {size:,}. "
                    "Download it again."
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise FileError(f"{name!r} cannot be read: {error.strerror}.") from error
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name!r} is damaged: its header is not valid JSON. Download it again.") from error
    return _checked(path, entries, 8 + length, size - 8 - length)


def _checked(path: Path, entries: Any, start: int, data_size: int) -> _Layout:
    damaged = f"{path.name!r} is damaged: "
    if not isinstance(entries, dict):
        raise FileError(damaged + "its header is no JSON object. Download it again.")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise FileError(damaged + "its __metadata__ is no JSON object.")
    if len(entries) > MAX_TENSORS:
        raise FileError(damaged + f"its header names {len(entries):,} tensors, and {MAX_TENSORS:,} are read at most.")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in entries.items():
        if len(key) > MAX_NAME:
            raise FileError(damaged + f"the name of a tensor has {len(key):,} letters. It begins with {shown(key)}.")
        begin, end, tensors[key] = _entry(damaged, key, entry, data_size)
        spans.append((begin, end, key))
    position = 0
    for begin, end, key in sorted(spans):
        if begin != position:
            raise FileError(damaged + f"the data of {shown(key)} does not begin where the tensor before it ends.")
        position = end
    if position > data_size:
        raise FileError(
            f"{path.name!r} is cut off: its tensors need {position:,} bytes, the file holds {data_size:,}. "
            "Download it again."
        )
    if position < data_size:
        raise FileError(damaged + f"{data_size - position:,} bytes follow after its last tensor.")
    header = Header(path, tensors, _texts(metadata, damaged))
    return _Layout(header, {key: (start + begin, end - begin) for begin, end, key in spans})


def _entry(damaged: str, key: str, entry: Any, data_size: int) -> tuple[int, int, TensorInfo]:
    """Where a tensor begins and ends in the data, and what it is; raises FileError."""
    odd = FileError(damaged + f"the header's entry for {shown(key)} cannot be understood.")
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = BITS[dtype]
    except (KeyError, TypeError) as error:
        raise odd from error
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > MAX_DIMS:
        raise odd
    # numbers may have thousands of digits, be infinite or true; 2^63 bytes are more than any disk has
    if not all(type(value) is int and 0 <= value < 1 << 63 for value in (*shape, *offsets)):
        raise odd
    begin, end = offsets
    bits *= math.prod(shape)
    if (end - begin) * 8 != bits:
        raise FileError(damaged + f"{shown(key)} has {end - begin} bytes, its shape {shape} needs {bits // 8}.")
    return begin, end, TensorInfo(dtype, tuple(shape))


def _texts(metadata: Mapping[str, Any], damaged: str) -> dict[str, str]:
    try:
        return {_text(key): _text(value) for key, value in metadata.items()}
    except RecursionError as error:
        # what json reads need not be what it can write
        raise FileError(damaged + "its __metadata__ is too deep. Download it again.") from error


def _text(value: Any) -> str:
    """A value of the metadata; tools of one's own write numbers and objects there, which the format does not know."""
    text = value if isinstance(value, str) else json.dumps(value)
    # half a surrogate cannot be written anywhere
    return text.encode(errors="replace").decode()
