"""A cell's key: everything that determines its picture, in 64 hex digits."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..run.report import digest, pack_version, versions
from ..run.start import noise_device

if TYPE_CHECKING:
    from ..run.run import Run

_SCHEMA = 1  # grows where a key says less or more than before
# environment variables that choose kernels
KERNEL_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE")
# of RuntimeOptions: none of these changes a picture
_PLACING = {"placement", "blocks_on_cpu", "embeddings_on_disk"}


def cell_key(run: Run) -> str:
    """The key of a prepared run of one picture; two runs with one key give the same pixels.

    Raises:
        FileError: a LoRA's file cannot be read.
    """
    text = json.dumps(_determining(run), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _determining(run: Run) -> dict[str, Any]:
    wanted, job, request, handle = run.wanted, run.job, run.request, run.wanted.handle
    return {
        "schema": _SCHEMA,
        "pack": pack_version(),
        "versions": versions(),
        "kernels": kernels(run.engine.device),
        "model": handle.model,
        "weights": handle.checkpoint.fingerprint(),
        "dtype": handle.dtype,
        "held": {name: key.held_as for name, key in wanted.keys.items()},
        "options": {name: value for name, value in asdict(handle.options).items() if name not in _PLACING},
        "loras": [
            [
                digest(lora.spec.file),
                lora.spec.companion and digest(lora.spec.companion),
                lora.spec.strength,
                lora.part,
                lora.mode,
                lora.arithmetic,
                lora.merge_arithmetic,
                *(["taken off"] if lora.spec.taken_off else []),
            ]
            for lora in wanted.loras
        ],
        "recipe": job.recipe.name,
        "recipe_options": list(request.recipe_options.values),
        "noise_device": noise_device(job, run.engine.device),
        "sigmas": [float(value).hex() for value in run.schedule.sigmas],
        "size": [job.size.width, job.size.height],
        "asked_size": [request.width, request.height],
        "texts": [job.typed.prompt, job.typed.negative_prompt, job.typed.system_prompt],
        "guidance_scale": float(request.guidance_scale),
        "seed": request.seed,
        "control_images": [[picture.width, picture.height, picture.sha256] for picture in job.references],
    }


def kernels(device: str) -> dict[str, Any]:
    """What decides the last bits beside the libraries' versions: the device's kind, and the kernels that it takes."""
    import torch

    found: dict[str, Any] = {name: os.environ.get(name, "") for name in KERNEL_VARIABLES}
    if device.startswith("cuda"):
        # the sums of a GPU differ with its kind, and with TF32
        return found | {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda or torch.version.hip,
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
            "sums": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
        }
    return found | {
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.enabled,
    }
