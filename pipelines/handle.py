"""What flows along the wires: small frozen values that say what is wanted. They hold no weights.

Two handles that compare equal mean the same pictures, so the engine (``engine.py``) and ComfyUI's cache can both rely
on comparing them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from .checkpoint import Checkpoint
from .files.header import FileStamp

if TYPE_CHECKING:
    import torch

DType = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "qfloat8", "qint8", "fp8_e4m3fn"]
QuantizationChoice = Literal["model default", "none", "qfloat8", "qint8", "fp8_e4m3fn"]
TextEncoderAttention = Literal["auto", "softcap", "no softcap"]
Attention = Literal["default", "flash", "sage"]
Application = Literal["auto", "merged", "live"]

DTYPES: tuple[DType, ...] = ("bfloat16", "float16", "float32")
QUANTIZATION_CHOICES: tuple[QuantizationChoice, ...] = ("model default", "none", "qfloat8", "qint8", "fp8_e4m3fn")
TEXT_ENCODER_ATTENTIONS: tuple[TextEncoderAttention, ...] = ("auto", "softcap", "no softcap")
ATTENTIONS: tuple[Attention, ...] = ("default", "flash", "sage")
APPLICATIONS: tuple[Application, ...] = ("auto", "merged", "live")


@dataclass(frozen=True)
class RuntimeOptions:
    """How weights are held and run.

    Attributes:
        transformer_quantization: ``model default`` is the model page's choice, or what the model states where this
            machine's memory cannot hold that (``plan.py``). Any other choice is kept.
        text_encoder_quantization: likewise. AI Toolkit's own interface quantises the text encoder to qfloat8.
        text_encoder_attention: soft-capping of Gemma2's attention logits; ``auto`` is the recipe's choice.
        transformer_attention: the kernel; ``default`` is torch's SDPA, as in every reference.
        blocks_on_cpu: how many of the transformer's main blocks, from the last, come to the device for their own call
            alone, at the least: the plan takes more where the device asks for it. More than there are means all.
    """

    transformer_quantization: QuantizationChoice = "model default"
    text_encoder_quantization: QuantizationChoice = "model default"
    text_encoder_attention: TextEncoderAttention = "auto"
    transformer_attention: Attention = "default"
    blocks_on_cpu: int = 0


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
    """

    name: str
    file: FileStamp
    strength: float
    application: Application = "auto"
    format: str = "LoRA"
    mergeable: bool = True
    parts: tuple[str, ...] = ("transformer",)
    companion: FileStamp | None = None


@dataclass(frozen=True)
class PipelineHandle:
    """A model with everything that decides its pictures.

    Attributes:
        model: id in the catalogue.
        checkpoint: where the weights are.
        dtype: what they are computed in.
        options: how they are held.
        loras: in the order in which they apply.
    """

    model: str
    checkpoint: Checkpoint
    dtype: DType = "bfloat16"
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    loras: tuple[LoraSpec, ...] = ()

    def with_lora(self, lora: LoraSpec) -> PipelineHandle:
        """A new handle with one more LoRA after the others; this one stays as it is."""
        return replace(self, loras=(*self.loras, lora))


@dataclass(frozen=True, eq=False)
class ControlImages:
    """Reference images in the order that the user gave them.

    Attributes:
        images: each [1, H, W, 3], float, 0..1. They may differ in size.
    """

    images: tuple[torch.Tensor, ...]
