"""What the report says besides the request: weights, LoRAs, versions, memory. Never a token or an absolute path."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .files.header import FileStamp, sha256
from .lora.stack import AppliedLora
from .plan import Plan, usable_ram

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
    names = {source.component: source.name for source in handle.checkpoint.sources}
    return {
        "id": handle.model,
        "weights": handle.checkpoint.name if len(set(names.values())) == 1 else names,
        "fingerprint": handle.checkpoint.fingerprint(),
        "dtype": handle.dtype,
        "transformer_attention": handle.options.transformer_attention,
        "quantization": {part: engine.held_as(handle, part) or "none" for part in ("transformer", "text_encoder")},
    }


def describe_loras(plan: Sequence[AppliedLora], handle: PipelineHandle) -> list[dict[str, Any]]:
    """Each LoRA of the handle, in order; one with strength 0 is listed as not applied."""
    rows = []
    for spec in handle.loras:
        planned = {lora.part: lora for lora in plan if lora.spec == spec}
        modes = {part: lora.mode for part, lora in planned.items()}
        arithmetics = {
            part: f"float32 merge, rounded to the {lora.merge_dtype} dtype"
            if lora.mode == "merged"
            else f"live, {lora.arithmetic}"
            for part, lora in planned.items()
        }
        rows.append(
            {
                "name": spec.name,
                "sha256": _sha256(spec.file),
                "format": spec.format,
                "parts": list(spec.parts),
                "strength": spec.strength,
                "application": _alike(modes) or "not applied",
                "arithmetic": _alike(arithmetics),
            }
        )
    return rows


def describe_memory(plan: Plan) -> dict[str, Any]:
    """The machine's memory, what a run puts there, and why; in GB of 10**9 bytes."""
    memory = plan.memory
    return {
        "unit": "GB",
        "device": memory and {"total": _gb(memory.total), "usable": _gb(memory.usable)},
        "ram": {"total": _gb(plan.ram), "usable": _gb(usable_ram(plan.ram))},
        "parts": {
            part.part: {
                "quantization": part.quantization,
                "quantization_by": "plan" if part.decided_here else "options",
                "weights": _gb(part.weights),
                "on_device": _gb(part.device),
                "blocks_streamed": [part.streamed, part.blocks],
            }
            for part in plan.parts
        },
        "text_encoder_and_transformer": "take turns in memory" if plan.take_turns else "stay in memory",
        "reasons": list(plan.reasons),
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def _alike(values: dict[str, str]) -> dict[str, str] | str | None:
    """One value where all parts agree; None without parts."""
    different = set(values.values())
    return values if len(different) > 1 else next(iter(different), None)


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
