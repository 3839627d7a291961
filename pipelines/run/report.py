"""What the report says: everything that decided a run's pictures. Never a token or an absolute path."""

from __future__ import annotations

import hashlib
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.file_digests import LARGE
from ..files.header import FileStamp, sha256
from ..machine.plan import Plan, usable_ram
from .start import noise_device

if TYPE_CHECKING:
    from ..engine.file_digests import FileDigests
    from ..engine.wanted import Wanted
    from ..layers.step_cache import StepCache
    from ..lora.stack import AppliedLora
    from ..options import MergeArithmetic
    from ..parts.encoder import Text
    from .request import SampleRequest
    from .run import Run

SCHEMA = 1  # grows where a key changes its meaning or leaves
_PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "torchao", "safetensors", "numpy")
_MERGES: dict[MergeArithmetic, str] = {
    "float32": "float32 merge, rounded to the run dtype",
    "stored": "float32 merge, rounded to the stored dtype",
    "peft": "merged, peft",
    "addmm": "merged, addmm",
    "file": "merged, in the file's dtype",
}
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@cache
def pack_version() -> str:
    """This pack's version."""
    return tomllib.loads(_PYPROJECT.read_text("utf-8"))["project"]["version"]


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


@dataclass(frozen=True)
class Sources:
    """The files that decided the pictures, as they were before the run.

    Attributes:
        model: where the weights come from and how they are held.
        loras: each LoRA of the handle, in order; one with strength 0 is listed as not applied.
    """

    model: Mapping[str, Any]
    loras: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, wanted: Wanted, digests: FileDigests) -> Sources:
        return cls(_weights(wanted) | {"files": _files(wanted, digests)}, _loras(wanted))


@dataclass(frozen=True, eq=False)
class Report:
    """A run's report.

    Attributes:
        run: the run.
        sources: its files.
        texts: what was encoded.
        notes: what the user sees on the node.
        peak: bytes of memory, see :func:`peak_memory`.
    """

    run: Run
    sources: Sources
    texts: Sequence[Text]
    notes: Sequence[str]
    peak: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        run, job, engine, progress = self.run, self.run.job, self.run.engine, self.run.progress
        model = run.wanted.model
        era = {} if job.recipe.era is None else {"era": asdict(job.recipe.era)}
        return {
            "schema": SCHEMA,
            "pack": {"name": "comfyui-aitk", "version": pack_version()},
            "model": dict(self.sources.model),
            "loras": list(self.sources.loras),
            "recipe": job.recipe.name,
            **era,
            **model.describe(job, self.texts),
            **_request(run.request, (job.size.width, job.size.height)),
            "system_prompt": job.typed.system_prompt or job.recipe.system_prompt,
            "noise_device": noise_device(job, engine.device),
            "prompt": job.typed.prompt,
            "negative_prompt": job.typed.negative_prompt if len(self.texts) > 1 else None,
            "control_images": [{"size": [p.width, p.height], "sha256": p.sha256} for p in job.references],
            "sigmas": [round(float(value), 7) for value in run.schedule.sigmas],
            "notes": list(self.notes),
            "work": {name: value - getattr(progress.before, name) for name, value in asdict(engine.counters).items()},
            "step_caching": _step_caching(progress.step_cache),
            "seconds": progress.clock.seconds,
            "memory": _memory(run.wanted.plan),
            "peak_memory": dict(self.peak),
            "device": engine.device,
            "versions": versions(),
        }


def _weights(wanted: Wanted) -> dict[str, Any]:
    handle, recovery = wanted.handle, wanted.handle.recovery
    names = {source.component: source.name for source in handle.checkpoint.sources}
    layered = [name for name, part in wanted.model.parts.items() if part.role != "autoencoder"]
    return {
        "id": handle.model,
        "weights": handle.checkpoint.name if len(set(names.values())) == 1 else names,
        "fingerprint": handle.checkpoint.fingerprint(),
        "dtype": handle.dtype,
        "transformer_attention": handle.options.transformer_attention,
        "placement": handle.options.placement,
        "compiled": handle.options.compiled,
        "quantization": {name: wanted.keys[name].held_as or "none" for name in layered},
        **({} if recovery is None else {"recovery_adapter": {"name": recovery.name, "qtype": recovery.qtype}}),
    }


def _files(wanted: Wanted, digests: FileDigests) -> list[dict[str, Any]]:
    """The files of weights. ``sha256`` is None of a large one that was never read whole: no run waits for that.

    The fingerprint tells such weights from others, too, by samples of them.
    """
    parts: dict[FileStamp, list[str]] = {}
    for source in wanted.handle.checkpoint.sources:
        for stamp in source.weight_files:
            parts.setdefault(stamp, []).append(source.component)
    return [
        {"name": stamp.path.name, "parts": own, "bytes": stamp.size, "sha256": _told(stamp, digests)}
        for stamp, own in parts.items()
    ]


def _told(stamp: FileStamp, digests: FileDigests) -> str | None:
    return digest(stamp) if stamp.size <= LARGE else digests.told(stamp)


def _loras(wanted: Wanted) -> list[dict[str, Any]]:
    rows = []
    for spec in wanted.handle.loras:
        planned: dict[str, AppliedLora] = {lora.part: lora for lora in wanted.loras if lora.spec == spec}
        modes = {part: lora.mode for part, lora in planned.items()}
        arithmetics = {
            part: _MERGES[lora.merge_arithmetic] if lora.mode == "merged" else f"live, {lora.arithmetic}"
            for part, lora in planned.items()
        }
        rows.append(
            {
                "name": spec.name,
                "sha256": digest(spec.file),
                "format": spec.format,
                "parts": list(spec.parts),
                "strength": spec.strength,
                "application": _alike(modes) or "not applied",
                "arithmetic": _alike(arithmetics),
                # what AI Toolkit leaves of a LoRA after a preview round
                **({"taken_off": True} if spec.taken_off else {}),
            }
        )
    return rows


def _request(request: SampleRequest, rendered: tuple[int, int]) -> dict[str, Any]:
    latent = request.latent
    return {
        "size": {
            "asked": [request.width, request.height] if latent is None else "the latent's",
            "rendered": list(rendered),
        },
        "steps": request.steps,
        "denoise": request.denoise,
        "latent_sha256": latent
        if latent is None
        else hashlib.sha256(latent.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest(),
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "batch_size": request.batch_size,
    }


def _step_caching(cache: StepCache) -> dict[str, Any] | None:
    if not cache.threshold:
        return None
    return {"threshold": cache.threshold, "block_calls": cache.block_calls, "reused": cache.reused}


def _memory(plan: Plan) -> dict[str, Any]:
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
        "_and_".join(plan.alternating): "take turns in memory" if plan.take_turns else "stay in memory",
        "reasons": list(plan.reasons),
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def _alike(values: dict[str, str]) -> dict[str, str] | str | None:
    """One value where all parts agree; None without parts."""
    different = set(values.values())
    return values if len(different) > 1 else next(iter(different), None)


@lru_cache(maxsize=64)
def digest(stamp: FileStamp) -> str:
    """SHA-256 of a file's contents, read once as long as the file stays as it is."""
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
