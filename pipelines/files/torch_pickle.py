"""PyTorch's own files (.pth, .pt, .ckpt, .bin): a pickle beside the tensors' bytes.

Read with torch's restricted unpickler, which makes tensors and plain containers and runs no code of the file. Before
2.6 it could be made to (CVE-2025-32434), before 2.10 it could be made to write outside of its memory (CVE-2026-24747):
older versions are not used for it.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..words import shown
from .content import PICKLE, START, ZIP, describe
from .header import MAX_NAME, FileStamp, Header, TensorInfo
from .spans import METER

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_OPEN_FOR = 1 << 28  # bytes read before a file is mapped anew
# how often a file's size its tensors may have: some share their bytes, and archives may be compressed
_MOST_TIMES = 16
_SAFE_TORCH = (2, 10)
_INSTEAD = "Use the model's safetensors file instead."


def read_header(path: Path) -> Header:
    """Reads names, dtypes and shapes; a file from before PyTorch 1.6 is read whole for it.

    Raises:
        FileError: the file is missing, none of PyTorch's, damaged, holds anything but tensors and plain values, or no
            tensors by name.
    """
    FileStamp.of(path)
    tensors, _ = _load(path)
    infos = {}
    for name, value in tensors.items():
        dtype = str(value.dtype).removeprefix("torch.")
        infos[name] = TensorInfo(_DTYPES.get(dtype, dtype.upper()), tuple(value.shape))
    return Header(path, infos, {})


def read_tensors(
    path: Path, names: list[str] | None = None, *, maps: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a file one by one, on the CPU, in their stored dtype, in memory of their own.

    The file is mapped anew every quarter of a gigabyte, since the pages that were read count as this process's memory
    as long as it is mapped.

    Args:
        path: a file that :func:`read_header` accepts.
        names: which ones; all of them by default.
        maps: as of other containers; these always have memory of their own.

    Raises:
        FileError: as :func:`read_header`; or the file was changed while it was read.
    """
    waiting = list(read_header(path).tensors) if names is None else list(names)
    while waiting:
        tensors, mapped = _load(path)
        size = 0
        while waiting and (size < _OPEN_FOR or not mapped):
            name = waiting.pop(0)
            if name not in tensors:
                raise FileError(f"{path.name!r} was changed while it was read. Run again.")
            tensor = tensors.pop(name)
            size += tensor.numel() * tensor.element_size()
            METER.bytes += tensor.nbytes
            # a map of the file breaks when the file is replaced
            yield name, tensor.clone()
            del tensor
        del tensors


def _load(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors by name, and whether they are maps of the file."""
    import torch

    mapped = _can_be_mapped(path)
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise FileError(
            f"{path.name!r} is a pickle, and PyTorch {torch.__version__} does not read those safely. Update PyTorch to "
            f"2.10 or newer, or use the model's safetensors file."
        )
    try:
        content = _unpickled(path, mapped)
    except MemoryError:
        raise
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror or type(error).__name__}.") from error
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
        if refused is None:
            raise FileError(f"{path.name!r} is damaged, or a pickle of another program. {_INSTEAD}") from error
        raise FileError(
            f"{path.name!r} is refused: its pickle holds code or Python objects ({refused[1]}), not only tensors. "
            f"Nothing of it was run. {_INSTEAD}"
        ) from error
    except Exception as error:
        # what torch makes of a damaged file is of any kind: KeyError, EOFError, RuntimeError, ...
        raise FileError(f"{path.name!r} is cut off or damaged: PyTorch cannot read it. Download it again.") from error
    return _named_tensors(path, content), mapped


def _unpickled(path: Path, mapped: bool) -> Any:
    import torch

    try:
        return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except RuntimeError:
        # some shares have no maps; a damaged file fails in the same way again
        if not mapped:
            raise
        return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=False)


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is PyTorch's archive and not its older format; raises FileError where it is neither."""
    name = path.name
    try:
        with path.open("rb") as file:
            kind = describe(file.read(START))
            if kind == PICKLE:
                return False
            if kind != ZIP:
                why = f"it is {kind}." if kind else "its content is of an unknown kind. Download it again."
                raise FileError(f"{name!r} is no PyTorch file: {why}")
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise FileError(f"{name!r} is cut off: the end of its archive is missing. Download it again.") from error
    except OSError as error:
        raise FileError(f"{name!r} cannot be read: {error.strerror}.") from error
    except (ValueError, NotImplementedError, EOFError) as error:
        raise FileError(f"{name!r} is damaged: its archive cannot be read. Download it again.") from error
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise FileError(f"{name!r} is a TorchScript program, not a file of tensors. {_INSTEAD}")
    if "data.pkl" not in names:
        raise FileError(f"{name!r} is no PyTorch file: it is a zip archive of something else. {_INSTEAD}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MOST_TIMES * FileStamp.of(path).size:
        raise FileError(f"{name!r} is refused: its archive unpacks to {unpacked:,} bytes. {_INSTEAD}")
    # a map of compressed bytes would be garbage
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _named_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, also of one under ``state_dict`` or ``model``; anything else is left out."""
    import torch

    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {
        name: value.detach() for name, value in entries if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise FileError(f"{path.name!r} holds no tensors by name: it is no model's weights. {_INSTEAD}")
    total, most = 0, _MOST_TIMES * FileStamp.of(path).size
    for name, value in tensors.items():
        if len(name) > MAX_NAME:
            raise FileError(f"{path.name!r} is damaged: the name of a tensor has {len(name):,} letters. {_INSTEAD}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise FileError(
                f"{path.name!r} cannot be used: its tensor {shown(name)} is sparse, quantised or without values. "
                f"{_INSTEAD}"
            )
        size = value.numel() * value.element_size()
        total += size
        # a shape may repeat what is stored
        if size > value.untyped_storage().nbytes() or total > most:
            raise FileError(
                f"{path.name!r} is damaged: its tensor {shown(name)} is larger than what is stored of it. {_INSTEAD}"
            )
    return tensors
