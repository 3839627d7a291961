"""GGUF files: their checked header, and their tensors, packed or plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from .gguf_header import read_layout

if TYPE_CHECKING:
    import torch

    from .header import Header
    from .packed import PackedTensor


def read_header(path: Path) -> Header:
    """Reads and checks the header of a GGUF file; reads nothing else of it.

    Shapes are torch's (``[out, in]``), the reverse of the file's. Of the metadata, texts are kept.

    Raises:
        FileError: the file is missing, no GGUF file, of a version or with a tensor type that is not read here, one part
            of several, damaged, or shorter than its header says.
    """
    return read_layout(path).header


def read_tensors(path: Path, names: list[str] | None = None) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """Yields the tensors of a file one by one, on the CPU, as stored. They are copies, never maps of the file.

    Args:
        path: a GGUF file that :func:`read_header` accepts.
        names: which ones; all of them by default.

    Raises:
        FileError: as :func:`read_header`; or the file was changed while it was read.
    """
    import torch

    from .packed import BlockTensor

    layout = read_layout(path)
    changed = f"{path.name!r} was changed while it was read. Run again."
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
    with file:
        for name in layout.spans if names is None else names:
            if name not in layout.spans:
                raise FileError(changed)
            info, (begin, length) = layout.header.tensors[name], layout.spans[name]
            raw = torch.empty(length, dtype=torch.uint8)
            buffer: Any = raw.numpy()
            try:
                file.seek(begin)
                whole = file.readinto(buffer) == length
            except OSError as error:
                raise FileError(f"{path.name!r} cannot be read: {error.strerror}.") from error
            if not whole:
                raise FileError(changed)
            if info.packed:
                yield name, BlockTensor.of(raw, info.dtype, info.shape)
            else:
                yield name, raw.view(dtypes[info.dtype]).reshape(info.shape)
            del raw, buffer
