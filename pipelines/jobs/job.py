"""A training job as a value: what its folder says, read once. It holds no weights and no pixels.

Names are AI Toolkit's where it has one. Imports no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..options import Chosen

if TYPE_CHECKING:
    from ..files.header import FileStamp
    from ..options import DType

Format = Literal["jpg", "png", "webp"]
_NEVER_MERGED = "dora"  # network_mixins.py, ToolkitNetworkMixin.merge_in


@dataclass(frozen=True)
class JobSample:
    """One picture of a preview round, as the trainer's own parser resolves it.

    Attributes:
        index: its place in the round, which its file's name has.
        prompt: after the trigger word and without inline flags; the text that is encoded.
        negative_prompt: None where the job says ``neg: false`` or nothing, at which the trainer dies.
        width, height: pixels, multiples of 8; the model may snap them further.
        steps: of the schedule.
        guidance_scale: as the model understands it.
        seed: None where the trainer draws one, which no file keeps.
        multiplier: the network's.
        control_images: paths as the job has them, in the order of ``ctrl_img_1`` to ``ctrl_img_3``.
        recipe_options: what it says of the options that the model's recipes read, on or off.
        problem: why it cannot be rendered as the trainer did; empty for most.
    """

    index: int
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int | None
    multiplier: float
    control_images: tuple[str, ...] = ()
    recipe_options: Chosen = field(default_factory=Chosen)
    problem: str = ""


@dataclass(frozen=True)
class JobModel:
    """The job's model section, with its defaults filled in.

    Attributes:
        arch: AI Toolkit's name, e.g. ``zimage:turbo``; ``lumina2`` also where ``is_lumina2`` says so.
        name_or_path: of the base, as the job has it: a repository, or a path on the trainer's machine.
        dtype: ``train.dtype``, in which previews are computed.
        quantization: ``denoiser`` and ``encoder`` -> AI Toolkit's type, ``none`` where it is not quantised.
        encoder_types: the encoder's type up to AI Toolkit 0.12.26, and since 0.13.5; empty where they are the same.
        extras: other keys that are set and change what is loaded: ``extras_name_or_path``, ``te_name_or_path``,
            ``vae_path``, ``assistant_lora_path`` and so on.
        section: all of it as the job has it, plain data: what another program of the trainer's own reads.
    """

    arch: str
    name_or_path: str
    dtype: DType
    quantization: Mapping[Literal["denoiser", "encoder"], str] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    encoder_types: tuple[str, ...] = ()
    section: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobCheckpoint:
    """A state of the network that previews were rendered with.

    Attributes:
        step: of the previews.
        final: whether it is the job's last.
        base: whether nothing was trained yet, and the network adds nothing: at step 0.
        initial: the LoRA's path by the job, where training began with one (``network.pretrained_lora_path``).
        file: the LoRA that was saved at that step, or the initial one; None for the base, and where it is gone or was
            never saved.
        missing: the name that the file would have, where it is gone.
        trained_with: AI Toolkit's version by that file, e.g. ``0.12.26``; empty where it says none.
    """

    step: int
    final: bool
    base: bool = False
    initial: str = ""
    file: FileStamp | None = None
    missing: str = ""
    trained_with: str = ""


@dataclass(frozen=True)
class JobPreview:
    """One of the trainer's pictures: the latest of its step and index."""

    step: int
    index: int
    file: FileStamp


@dataclass(frozen=True)
class Round:
    """A preview round that the trainer rendered.

    Attributes:
        step: in its pictures' names.
        indices: of its pictures, in order.
        process: which of the trainer's processes it was, from 0 on: each begins with the base's own weights.
        merged_at: the multiplier at which its LoRA was merged; None where it was live.
    """

    step: int
    indices: tuple[int, ...]
    process: int
    merged_at: float | None


@dataclass(frozen=True)
class TrainingJob:
    """A job's folder.

    Attributes:
        name: the job's.
        folder: where it is.
        model: what was trained.
        samples: of a usual round, in order.
        first_samples: of step 0, whose pictures may be of the section ``first_sample``; those of a usual round in most
            jobs.
        one_multiplier: whether all samples have the same: then AI Toolkit merges the LoRA where it can.
        format: of the pictures.
        checkpoints: in the order of their steps.
        previews: in the order of steps and indices.
        save_dtype: the LoRA's, e.g. ``float16``: the trainer rendered with its float32 weights.
        trained_with: AI Toolkit's version by the latest LoRA that says one; empty where none does.
        samples_on_resume: whether a training that is taken up again first renders the step at which it begins
            (``train.force_first_sample``): that step's pictures may be of a later version than its LoRA.
        network_type: of the network section, e.g. ``lora``.
        rounds: as the trainer rendered them, one after the other, as far as their pictures are there.
        notes: what of the folder was skipped, and why; a sentence each.
    """

    name: str
    folder: Path
    model: JobModel
    samples: tuple[JobSample, ...]
    first_samples: tuple[JobSample, ...]
    one_multiplier: bool
    format: Format
    checkpoints: tuple[JobCheckpoint, ...]
    previews: tuple[JobPreview, ...]
    save_dtype: str
    trained_with: str = ""
    samples_on_resume: bool = False
    network_type: str = "lora"
    rounds: tuple[Round, ...] = ()
    notes: tuple[str, ...] = ()

    def samples_at(self, step: int) -> tuple[JobSample, ...]:
        """What the pictures of a step were rendered with."""
        return self.samples if step else self.first_samples

    @property
    def can_merge(self) -> bool:
        """Whether AI Toolkit merges the LoRA of a round with one multiplier: into a plain denoiser, none offloaded."""
        plain = self.model.quantization.get("denoiser", "none") == "none"
        return plain and not self.model.extras.get("layer_offloading") and self.network_type != _NEVER_MERGED

    @property
    def merges(self) -> bool:
        """Whether AI Toolkit merges the LoRA for previews."""
        return self.can_merge and self.one_multiplier

    def preview(self, step: int, index: int) -> JobPreview | None:
        """The trainer's picture of a cell, where there is one."""
        place = bisect_left(self.previews, (step, index), key=lambda one: (one.step, one.index))
        found = self.previews[place : place + 1]
        return found[0] if found and (found[0].step, found[0].index) == (step, index) else None
