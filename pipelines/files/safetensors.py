"""Safetensors files: what their header says, whether they are whole, and their tensors.

The header is read and checked before anything else touches a file, so that a truncated download, an HTML page or a
pickle gives an error that says so, and not one of a parser's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from .content import PICKLE, SAFETENSORS, START, ZIP, describe
from .header import FileStamp, Header, TensorInfo

if TYPE_CHECKING:
    import torch

# bits per value, from the safetensors format description
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_OPEN_FOR = 1 << 28  # bytes read before a file is opened anew
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library

# kinds of files that a user may take for tensors
_UNSAFE = {kind: f"{kind}; only safetensors files are loaded, since a pickle can run code" for kind in (PICKLE, ZIP)}


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file; reads nothing else of it.

    Raises:
        FileError: the file is missing, no safetensors file, damaged, or shorter or longer than its header says.
    """
    name = path.name
    size = FileStamp.of(path).size
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
    return _checked(path, entries, size - 8 - length)


def _checked(path: Path, entries: Any, data_size: int) -> Header:
    damaged = f"{path.name!r} is damaged: "
    if not isinstance(entries, dict):
        raise FileError(damaged + "its header is no JSON object. Download it again.")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise FileError(damaged + "its __metadata__ is no JSON object.")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in entries.items():
        try:
            dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
            bits = _BITS[dtype] * math.prod(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(damaged + f"the header's entry for {key!r} cannot be understood.") from error
        if (end - begin) * 8 != bits:
            raise FileError(damaged + f"{key!r} has {end - begin} bytes, its shape {list(shape)} needs {bits // 8}.")
        tensors[key] = TensorInfo(dtype, shape)
        spans.append((begin, end, key))
    position = 0
    for begin, end, key in sorted(spans):
        if begin != position:
            raise FileError(damaged + f"the data of {key!r} does not begin where the tensor before it ends.")
        position = end
    if position > data_size:
        raise FileError(
            f"{path.name!r} is cut off: its tensors need {position:,} bytes, the file holds {data_size:,}. "
            "Download it again."
        )
    if position < data_size:
        raise FileError(damaged + f"{data_size - position:,} bytes follow after its last tensor.")
    return Header(path, tensors, {str(key): str(value) for key, value in metadata.items()})


def read_tensors(path: Path, names: list[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a file one by one, on the CPU, in their stored dtype.

    They may be maps of the file: who keeps one, copies it. The file is opened anew every quarter of a gigabyte, since
    the pages that were read count as this process's memory as long as it is open.

    Args:
        path: a safetensors file that :func:`read_header` accepts.
        names: which ones; all of them by default.
    """
    from safetensors import safe_open

    waiting = list(read_header(path).tensors) if names is None else list(names)
    while waiting:
        size = 0
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            while waiting and size < _OPEN_FOR:
                name = waiting.pop(0)
                tensor = file.get_tensor(name)
                size += tensor.numel() * tensor.element_size()
                yield name, tensor
                del tensor
