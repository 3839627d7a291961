"""What is asked of the engine for one cell: the job's own model section, sample and LoRA, as a training has them.

A job's value that is left out would be filled in by the engine's registry, which quantises otherwise than a training
does: so all four keys of the quantisation are always sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, InputError, OracleError
from ..files.safetensors import read_header
from ..jobs.job_samples import CFG_NORM, IMAGE_TWICE
from ..jobs.loaders import by_old_loaders
from ..pictures.saving import reason
from ..replay.control import find_control_image
from ..run.report import digest
from ..words import shown
from .protocol import LORA_MODE, SKIPPED_KEYS, STREAM, TAKEN_KEY

if TYPE_CHECKING:
    from ..files.header import FileStamp
    from ..jobs.job import JobCheckpoint, JobModel, JobSample, TrainingJob
    from ..replay.control import ControlFolders

_SCHEMA = 1
_DEFAULT_TYPE = "qfloat8"  # of a training job that names none
# the sample's keys of control images, in order; AI Toolkit takes ctrl_img for ctrl_img_1 where that is not given, and
# some models show their text encoder both
_CONTROL_KEYS = ("ctrl_img", "ctrl_img_2", "ctrl_img_3")
_ONCE = ("ctrl_img_1", *_CONTROL_KEYS[1:])
_LARGEST_CONTROL_IMAGE = 1 << 28  # bytes


@dataclass(frozen=True, eq=False)
class Asked:
    """One request, but for the names that control images have in the engine's assets.

    Attributes:
        model, sample: of the request's body.
        lora: the checkpoint's file; None at step 0.
        strength: the LoRA's.
        control_images: files, in order.
        control_keys: the sample's keys of them.
    """

    model: Mapping[str, Any]
    sample: Mapping[str, Any]
    lora: FileStamp | None
    strength: float
    control_images: tuple[Path, ...]
    control_keys: tuple[str, ...] = _CONTROL_KEYS

    def key(self) -> str:
        """Of everything that is sent, and of the files' contents rather than their names; 64 hex digits."""
        determining = {
            "schema": _SCHEMA,
            "asks": "AI Toolkit's engine",
            "model": self.model,
            "sample": self.sample,
            "lora": self.lora and [digest(self.lora), self.strength, LORA_MODE],
            "control_images": [hashlib.sha256(content_of(path)).hexdigest() for path in self.control_images],
        }
        if self.control_images and self.control_keys != _CONTROL_KEYS:
            determining["control_keys"] = self.control_keys
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()

    def body(self, assets: Sequence[str]) -> dict[str, Any]:
        """The request's body.

        Args:
            assets: how the engine names the control images.
        """
        model = dict(self.model)
        if self.lora is not None:
            path = self.lora.path
            model |= {
                "loras": [{"path": str(path), "strength": self.strength, "name": path.stem}],
                "lora_mode": LORA_MODE,
            }
        images = dict(zip(self.control_keys, assets, strict=False))
        return {"model": model, "sample": {**self.sample, **images}, "stream": STREAM}


def ask_for(
    job: TrainingJob, checkpoint: JobCheckpoint, sample: JobSample, strength: float, folders: ControlFolders
) -> Asked:
    """A cell's request.

    Args:
        job: whose cell.
        checkpoint, sample: the cell's.
        strength: times the sample's own multiplier.
        folders: where control images may lie.

    Raises:
        AITKError: the engine cannot draw it as the trainer did; says why.
    """
    if sample.problem or sample.seed is None or sample.negative_prompt is None:
        raise InputError(
            f"Sample {sample.index} does not say all that a picture needs, e.g. its seed: see our own error."
        )
    if "lora_path" in job.model.section:
        raise OracleError("The job's model has a lora_path of its own, which the engine takes for a request's LoRA.")
    if checkpoint.file is None and not checkpoint.base:
        raise FileError(f"There is no LoRA of step {checkpoint.step} that the engine could be given.")
    if checkpoint.file is not None:
        check_lora(checkpoint.file.path)
    images = sample.control_images[: len(_CONTROL_KEYS)]
    return Asked(
        model=model_of(job.model, checkpoint.trained_with or job.trained_with),
        sample={
            "prompt": sample.prompt,
            "negative_prompt": sample.negative_prompt,
            "width": sample.width,
            "height": sample.height,
            "num_inference_steps": sample.steps,
            "guidance_scale": sample.guidance_scale,
            "seed": sample.seed,
            "output_ext": "png",
            **({CFG_NORM: True} if sample.recipe_options.get(CFG_NORM, False) else {}),
        },
        lora=checkpoint.file,
        strength=sample.multiplier * strength if checkpoint.file is not None else 0.0,
        control_images=tuple(find_control_image(path, folders)[0] for path in images),
        # off where the model would show the image twice and the job has it once
        control_keys=_CONTROL_KEYS if sample.recipe_options.get(IMAGE_TWICE, True) else _ONCE,
    )


def model_of(model: JobModel, trained_with: str) -> dict[str, Any]:
    """The model section of a request: the job's own, and what it left to the trainer's defaults.

    Args:
        model: the job's.
        trained_with: AI Toolkit's version; may be empty.
    """
    section = dict(model.section)
    encoder = model.quantization.get("encoder", "none")
    found = section | {
        "arch": model.arch,
        "name_or_path": model.name_or_path,
        "quantize": bool(section.get("quantize", False)),
        "qtype": section.get("qtype", _DEFAULT_TYPE),
        "quantize_te": encoder != "none",
        # which of its two types the encoder had depends on the version that trained
        "qtype_te": section.get("qtype_te", _DEFAULT_TYPE) if encoder == "none" else encoder,
    }
    if by_old_loaders(trained_with):
        # since 0.13 one of ComfyUI's files may stand in for a repository
        own = section.get("model_kwargs")
        found["model_kwargs"] = {"use_comfy_weights": False, **(own if isinstance(own, Mapping) else {})}
    return found


def check_lora(path: Path) -> None:
    """Raises OracleError where the engine leaves out a part of a LoRA's file, FileError where it cannot be read."""
    for key in read_header(path).tensors:
        if TAKEN_KEY.search(key):
            continue
        kind = next((kind for mark, kind in SKIPPED_KEYS.items() if mark in key), "")
        if kind:
            raise OracleError(
                f"The LoRA {shown(path.name)} is a {kind}, of which the engine leaves a part out: its picture would be "
                "another one."
            )
        raise OracleError(f"The LoRA {shown(path.name)} has {shown(key)}, which the engine is not known to take.")


def content_of(path: Path) -> bytes:
    """A control image's file; raises FileError where it cannot be read, or is none."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_CONTROL_IMAGE + 1)
    except OSError as error:
        raise FileError(f"Control image {shown(path.name)} cannot be read: {reason(error)}.") from error
    if len(content) > _LARGEST_CONTROL_IMAGE:
        raise FileError(
            f"Control image {shown(path.name)} is too large for a picture: {len(content):,} bytes and more."
        )
    return content
