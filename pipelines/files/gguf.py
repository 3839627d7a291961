"""GGUF files: their checked header, and their tensors, packed or plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .gguf_header import read_layout
from .spans import read_spans

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


def read_tensors(
    path: Path, names: list[str] | None = None, *, maps: bool = False
) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
    """Yields the tensors of a file one by one, on the CPU, as stored.

    Args:
        path: a GGUF file that :func:`read_header` accepts.
        names: which ones; all of them by default.
        maps: whether they may lie in the file's own pages; else they have memory of their own.

    Raises:
        FileError: as :func:`read_header`; or the file was changed while it was read.
    """
    import torch

    from .packed import BlockTensor

    layout = read_layout(path)
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, raw in read_spans(path, layout.spans, names, maps=maps):
        info = layout.header.tensors[name]
        if info.packed:
            yield name, BlockTensor.of(raw, info.dtype, info.shape)
        else:
            yield name, raw.view(dtypes[info.dtype]).reshape(info.shape)
