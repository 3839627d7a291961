"""Reads and writes the tiny models' safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save

Tensors = dict[str, torch.Tensor]


def read_part(folder: Path, part: str) -> Tensors:
    """Every tensor of a part of a diffusers folder that is stored in one file."""
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> Path:
    """Writes a safetensors file, the same bytes for the same arguments; returns the path.

    The library itself writes metadata in an order that differs from call to call.
    """
    # parts of a fused matrix share its storage, which the library refuses
    content = save({name: value.contiguous().clone() for name, value in tensors.items()}, dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of 8
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path
