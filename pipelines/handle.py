"""What flows along the wires: small frozen values that say what is wanted. They hold no weights.

Two handles that compare equal mean the same pictures: the engine and ComfyUI's cache both rely on comparing them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .options import RuntimeOptions
from .words import cut

if TYPE_CHECKING:
    import torch

    from .files.header import FileStamp
    from .options import Application, Arithmetic, DType, Quantization, RecoveryType
    from .weights.checkpoint import Checkpoint

_SHOWN_LORAS = 3  # in a handle's own words


@dataclass(frozen=True)
class LoraSpec:
    """One LoRA of a handle.

    Attributes:
        name: as the user sees it, relative to the loras folder.
        file: the file, told from a replacement of the same name.
        strength: any number; AI Toolkit's ``network_multiplier``.
        application: ``auto`` is resolved per recipe when the sampler runs.
        format: title of the file's kind.
        mergeable: False for a kind that is never merged.
        parts: of the model that it changes.
        companion: PEFT's configuration beside the file, which has its alpha.
        arithmetic: of live branches; None is the recipe's.
        taken_off: whether it is only what AI Toolkit leaves of it in the weights after a preview round: merged at the
            strength, then taken off by the strength's absolute value, each with a rounding. Of a strength below 0 twice
            of it stays, of any other what the roundings leave.
    """

    name: str
    file: FileStamp
    strength: float
    application: Application = "auto"
    format: str = "LoRA"
    mergeable: bool = True
    parts: tuple[str, ...] = ("transformer",)
    companion: FileStamp | None = None
    arithmetic: Arithmetic | None = None
    taken_off: bool = False

    def __repr__(self) -> str:
        # ComfyUI's errors and text previews show it: no path, which may hold a user's name
        return f"{cut(self.name, 60)} at {self.strength:g}{', taken off again' if self.taken_off else ''}"


@dataclass(frozen=True)
class Recovery:
    """What an accuracy recovery adapter asks of the weights under it. Its branch is the first of the handle's LoRAs.

    Attributes:
        name: of its file, as the user sees it.
        part: whose layers these are.
        qtype: how they are held.
        layers: their names in the part; no other layer of it is quantised.
    """

    name: str
    part: str
    qtype: RecoveryType
    layers: tuple[str, ...]

    @property
    def quantization(self) -> Quantization:
        """The form of the layers: AI Toolkit's ``uint8`` refuses each."""
        return "none" if self.qtype == "uint8" else self.qtype


class Lease:
    """Keeps a handle's weights in memory as long as it lives: ComfyUI lets go of its nodes' outputs to free memory."""


@dataclass(frozen=True)
class PipelineHandle:
    """A model with everything that decides its pictures.

    Attributes:
        model: id in the catalogue.
        checkpoint: where the weights are.
        dtype: what they are computed in.
        options: how they are held.
        loras: in the order in which they apply.
        recovery: how the weights under an accuracy recovery adapter are held; None without one.
        lease: shared by all handles that were made of one; decides no picture.
    """

    model: str
    checkpoint: Checkpoint
    dtype: DType = "bfloat16"
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    loras: tuple[LoraSpec, ...] = ()
    recovery: Recovery | None = None
    lease: Lease | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        loras = [f", LoRA {lora!r}" for lora in self.loras[:_SHOWN_LORAS]]
        more = len(self.loras) - len(loras)
        rest = f", and {more} more" if more else ""
        recovery = f", {self.recovery.qtype} under its recovery adapter" if self.recovery else ""
        return f"AITK pipeline: {self.model}, {cut(self.checkpoint.name)}, {self.dtype}{recovery}{''.join(loras)}{rest}"

    def with_lora(self, lora: LoraSpec) -> PipelineHandle:
        """A new handle with one more LoRA after the others; this one stays as it is."""
        return replace(self, loras=(*self.loras, lora))


@dataclass(frozen=True, eq=False)
class ControlImages:
    """Reference images in the order that the user gave them.

    Attributes:
        images: each [1, H, W, 3], float, 0..1. They may differ in size.
        notes: what the user should know of them.
    """

    images: tuple[torch.Tensor, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = [f"{image.shape[2]} x {image.shape[1]}" for image in self.images]
        return f"AITK control images: {', '.join(sizes)}"
