"""What must be alike on two machines whose pictures are to be alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.jobs.era import encoder_types_of, recipes_by_step
from ...pipelines.models import find_model
from ...pipelines.replay.kernels import other_kernels
from ...pipelines.replay.key import kernels
from ...pipelines.run.report import digest, pack_version, versions

if TYPE_CHECKING:
    from ...pipelines.handle import PipelineHandle
    from ...pipelines.jobs.job import TrainingJob

USUAL = ""  # in the place of other kernels' name: those in force
_LIBRARY = Path(__file__).resolve().parents[2] / "pipelines"


@dataclass(frozen=True)
class Passport:
    """A process that renders cells.

    Attributes:
        versions: of the pack and of the libraries, by name.
        code: digest of the pack's library, which has one version while it is developed.
        job: digest of its samples, of its checkpoints' names and sizes, and of how the trainer rendered each.
        weights: fingerprint of the base's files, those that the job takes from elsewhere among them.
        adapter: digests of the base's LoRAs: the training or recovery adapter, where there is one.
        kernels: see :func:`...pipelines.replay.key.kernels`.
        others: names of the other kernels that it can render with, in the order of trying.
    """

    versions: Mapping[str, str]
    code: str
    job: str
    weights: str
    adapter: tuple[str, ...]
    kernels: Mapping[str, Any]
    others: tuple[str, ...]

    @classmethod
    def of_this_process(cls, job: TrainingJob, base: PipelineHandle, device: str) -> Passport:
        # Pillow writes the files
        own = {"comfyui-aitk": pack_version(), **versions(), "pillow": version("pillow")}
        adapter = tuple(digest(lora.file) for lora in base.loras)
        others = tuple(one.name for one in other_kernels(device))
        return cls(own, _code(), _contents(job, base), base.checkpoint.fingerprint(), adapter, kernels(device), others)

    def unlike(self, own: Passport) -> Iterator[str]:
        """How this one differs from the driver's, in words; kernels aside, for the driver may have no GPU."""
        for name in own.versions.keys() | self.versions.keys():
            there, here = (found.versions.get(name, "not installed") for found in (self, own))
            if there != here:
                yield f"{name} is {there} there and {here} here"
        if self.code != own.code:
            yield "the pack's code is another one"
        if self.job != own.job:
            yield "the job has other samples, checkpoints or previews there, or another LoRA that it began with"
        if self.weights != own.weights:
            yield "the files of the base are others"
        if self.adapter != own.adapter:
            yield "the training or recovery adapter in 'loras' is another file, or only one machine has it"

    def unlike_kernels(self, first: Passport) -> Iterator[str]:
        """How this one's kernels differ from those of the first worker, in words."""
        for name in first.kernels.keys() | self.kernels.keys():
            there, here = self.kernels.get(name), first.kernels.get(name)
            if there != here:
                yield f"{name} is {there} there and {here} on the others"
        if self.others != first.others:
            yield f"other kernels are {', '.join(self.others)} there and {', '.join(first.others)} on the others"


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(_LIBRARY.rglob("*.py")):
        # a checkout on Windows may have other ends of lines
        text = path.read_text("utf-8")
        digest.update(f"{path.relative_to(_LIBRARY).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()


def _contents(job: TrainingJob, base: PipelineHandle) -> str:
    recipes = recipes_by_step(job, job.checkpoints, find_model(base.model))
    checkpoints = [
        (one.step, one.file and (one.file.path.name, one.file.size), recipes[one.step], encoder_types_of(job, one))
        for one in job.checkpoints
    ]
    found = (job.model, job.samples, job.first_samples, job.one_multiplier, checkpoints)
    return hashlib.sha256(repr(found).encode()).hexdigest()
