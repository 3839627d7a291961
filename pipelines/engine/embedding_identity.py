"""Everything that decides the bits of an embedding, as one text: the key of an embedding that outlives its process."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.header import FileStamp

if TYPE_CHECKING:
    from ..lora.stack import AppliedLora
    from ..weights.source import Source
    from .embeddings import EmbeddingKey

SCHEMA = 1  # grows where what is stored, or the meaning of a value below, changes
_PACKAGES = ("torch", "transformers", "optimum-quanto", "torchao", "tokenizers", "sentencepiece", "numpy")
# what chooses kernels from outside of the process
_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_BLAS_PREFER_CUBLASLT", "PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL",
)  # fmt: skip
_TOKENIZER_FILES = (".json", ".model", ".txt", ".jinja")
_CODE = Path(__file__).resolve().parents[1]

Digest = Callable[[FileStamp], str]  # a file's contents


def identity(key: EmbeddingKey, machine: Mapping[str, Any], digest: Digest) -> str:
    """64 hex digits that are other ones wherever the embedding may be another one.

    Neither paths nor times of files count, only what the files hold. A model's choice of attention is in the settings
    of its text.

    Args:
        key: the embedding's key in memory.
        machine: see :func:`machine_of`, when it is encoded.
        digest: gives a file's contents.

    Raises:
        FileError: a file cannot be read, or is another one by now.
        TypeError: a model's settings hold what has no plain form.
    """
    part, loras, text, _ = key
    return hashlib.sha256(
        canonical(
            {
                "schema": SCHEMA,
                "code": _code(),
                "model": part.model,
                "part": part.part,
                "files": _contents(part.source, digest),
                "dtype": part.dtype,
                "quantization": part.quantization,
                "plain": part.plain,
                "loras": [_lora(lora, digest) for lora in loras],
                "text": text,
                "machine": machine,
            }
        ).encode()
    ).hexdigest()


def canonical(value: Any) -> str:
    """A value as JSON, one text for one value; raises TypeError where it has no plain form."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        # those that do not tell two values apart, e.g. a picture's pixels beside their digest
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"is": type(value).__qualname__, **own}
    if isinstance(value, Mapping):
        return {"keys": sorted([_plain(key), _plain(own)] for key, own in value.items())}
    if isinstance(value, tuple | list):
        return [_plain(own) for own in value]
    raise TypeError(f"a {type(value).__name__} has no plain form")


def _contents(source: Source, digest: Digest) -> dict[str, Any]:
    """What the files of a part hold: weights in their order, configuration, tokenizer."""
    weights = source.weight_files
    # an index, and what a configuration says beside what the part's class reads; other weights beside them do not count
    others = [stamp for stamp in source.files if stamp not in weights and stamp.path.suffix in _TOKENIZER_FILES]
    return {
        "weights": [digest(stamp) for stamp in weights],
        "config": source.config(),
        "tokenizer": _tokenizer(source.tokenizer(), digest),
        "others": sorted(map(digest, others)),
    }


def _tokenizer(found: Path | bytes | None, digest: Digest) -> Any:
    if isinstance(found, bytes):
        return hashlib.sha256(found).hexdigest()
    if found is None:
        return None
    files = sorted(path for path in found.iterdir() if path.suffix in _TOKENIZER_FILES and path.is_file())
    # here a file's name says what it is for
    return [[path.name, digest(FileStamp.of(path))] for path in files]


def _lora(lora: AppliedLora, digest: Digest) -> dict[str, Any]:
    companion = lora.spec.companion
    return {
        "file": digest(lora.spec.file),
        "companion": None if companion is None else digest(companion),
        "strength": lora.spec.strength,
        "part": lora.part,
        "mode": lora.mode,
        "arithmetic": lora.arithmetic,
        "merge_arithmetic": lora.merge_arithmetic,
        # only there: what is on the disk keeps its name
        **({"taken_off": True} if lora.spec.taken_off else {}),
    }


def machine_of(device: str) -> dict[str, Any]:
    """What decides which kernels compute: libraries, processor, device, and torch's switches."""
    import torch

    found: dict[str, Any] = {
        "packages": _versions(),
        "python": sys.version_info[:2],
        "system": [platform.system(), platform.machine()],
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "cpu": [torch.backends.cpu.get_cpu_capability(), _processor()],
        # also of a run on a GPU: rotary tables are made on the CPU, and some sums
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "device": torch.device(device).type,
    }
    if torch.device(device).type == "cuda":
        found["cuda"] = _cuda(device)
    return found


def _cuda(device: str) -> dict[str, Any]:
    import torch

    matmul, sdp = torch.backends.cuda.matmul, torch.backends.cuda
    switches = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction",
                "allow_fp16_accumulation")  # fmt: skip
    kernels = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled")
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": torch.cuda.get_device_capability(device),
        "versions": [torch.version.cuda, torch.version.hip, torch.backends.cudnn.version()],
        # older versions of torch lack some
        "switches": {name: _known(matmul, name) for name in switches},
        "kernels": {name: getattr(sdp, name, bool)() for name in kernels},
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark],
    }


def _known(owner: Any, name: str) -> Any:
    try:
        return _plain(getattr(owner, name))
    except (AttributeError, AssertionError, RuntimeError, TypeError):
        return None


@cache
def _versions() -> Mapping[str, str | None]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _processor() -> Sequence[str]:
    """Its name and instructions: libraries look at more of them than torch tells, e.g. AMX."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return [platform.processor()]
    return [line for line in lines if line.split("\t")[0].strip() in ("model name", "flags", "Features", "CPU part")]


@cache
def _code() -> str:
    """Of this library: what encodes otherwise than before must not be answered from before."""
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        digest.update(f"{path.relative_to(_CODE).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
