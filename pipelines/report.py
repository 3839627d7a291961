"""What the report says besides the request: weights, LoRAs, versions, memory. Never a token or an absolute path."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .files.safetensors import FileStamp, sha256
from .lora.stack import AppliedLora

if TYPE_CHECKING:
    from .engine import Engine
    from .handle import PipelineHandle

_PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "safetensors", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_weights(engine: Engine, handle: PipelineHandle) -> dict[str, Any]:
    """Where the weights come from and how they are held."""
    return {
        "id": handle.model,
        "weights": handle.checkpoint.name,
        "fingerprint": handle.checkpoint.fingerprint(),
        "dtype": handle.dtype,
        "quantization": {part: engine.part_key(handle, part).quantization for part in ("transformer", "text_encoder")},
    }


def describe_loras(plan: Sequence[AppliedLora], handle: PipelineHandle) -> list[dict[str, Any]]:
    """Each LoRA of the handle, in order; one with strength 0 is listed as not applied."""
    planned = {lora.spec: lora for lora in plan}
    rows = []
    for spec in handle.loras:
        applied = planned.get(spec)
        merged = applied is not None and applied.mode == "merged"
        rows.append(
            {
                "name": spec.name,
                "sha256": _sha256(spec.file),
                "format": spec.format,
                "strength": spec.strength,
                "application": "not applied" if applied is None else applied.mode,
                "arithmetic": "float32 merge" if merged else applied and applied.arithmetic,
            }
        )
    return rows


@lru_cache(maxsize=64)
def _sha256(stamp: FileStamp) -> str:
    return sha256(stamp.path)


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int]]:
    """Yields a dict of peak memory in bytes, set after the block: the device's in it, the process's since its start."""
    import torch

    peak: dict[str, int] = {}
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield peak
    finally:
        if cuda:
            peak["device"] = torch.cuda.max_memory_allocated(device)
        if sys.platform != "win32":
            import resource

            # kilobytes on Linux, bytes on macOS
            unit = 1 if sys.platform == "darwin" else 1024
            peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
