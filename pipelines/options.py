"""The choices that users make about how weights are held and computed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

DType = Literal["bfloat16", "float16", "float32"]
# all but the first and the fourth are AI Toolkit's names of its types; saved workflows hold them
Quantization = Literal[
    "none", "qfloat8", "qint8", "fp8_e4m3fn", "float8", "int8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2",
    "qint4", "qint2", "qfloat8_e5m2", "qfloat8_e4m3fnuz",
]  # fmt: skip
QuantizationChoice = Literal["model default"] | Quantization
# AI Toolkit's types that run under an accuracy recovery adapter; its uint8 leaves every layer as it is
RecoveryType = Literal["uint3", "uint4", "uint2", "uint5", "uint6", "uint7", "uint8", "float8", "int8"]
Attention = Literal["default", "flash", "sage", "flash 3", "xformers"]
Placement = Literal["automatic", "resident", "streamed", "sequential"]
Application = Literal["auto", "merged", "live"]
Arithmetic = Literal["trainer", "peft", "sd-scripts", "recovery"]  # of a live LoRA
MergeArithmetic = Literal["float32", "stored", "peft", "addmm", "file"]
Role = Literal["encoder", "denoiser", "autoencoder"]
OptionValue = float | bool | str

DTYPES: tuple[DType, ...] = ("bfloat16", "float16", "float32")
QUANTIZATION_CHOICES: tuple[QuantizationChoice, ...] = ("model default", *get_args(Quantization))
RECOVERY_TYPES: tuple[RecoveryType, ...] = get_args(RecoveryType)
ATTENTIONS: tuple[Attention, ...] = ("default", "flash", "sage", "flash 3", "xformers")
PLACEMENTS: tuple[Placement, ...] = ("automatic", "resident", "streamed", "sequential")
APPLICATIONS: tuple[Application, ...] = ("auto", "merged", "live")
# role -> the input of AITK Runtime Options that decides how its parts are held
QUANTIZATION_INPUTS: dict[Role, str] = {
    "denoiser": "transformer_quantization",
    "encoder": "text_encoder_quantization",
}


def torch_dtype(dtype: DType) -> torch.dtype:
    import torch

    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]


ALL_BLOCKS = 1 << 30  # more than any model has


@dataclass(frozen=True)
class Chosen:
    """Values of options that models declare (``models/option.py``): those that the user changed.

    Attributes:
        values: (name, value) pairs, in the order of the options' places.
    """

    values: tuple[tuple[str, OptionValue], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, OptionValue]) -> Chosen:
        return cls(tuple(values.items()))

    def get(self, name: str, default: OptionValue) -> OptionValue:
        return dict(self.values).get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.values))


@dataclass(frozen=True)
class RuntimeOptions:
    """How weights are held and run. The first three have the names of the node's inputs, whatever a model calls a part.

    Attributes:
        transformer_quantization: of every denoiser. ``model default`` is the model page's choice, or what the model
            states where this machine's memory cannot hold that (``machine/plan.py``). Any other choice is kept.
        text_encoder_quantization: of every encoder, likewise. AI Toolkit's own interface quantises them to qfloat8.
        transformer_attention: the denoisers' kernel; ``default`` is torch's SDPA, as in every reference.
        blocks_on_cpu: how many of a denoiser's main blocks, from the last, come to the device for their own call alone,
            at the least: the plan takes more where the device asks for it. More than there are means all.
        own: what models declare for themselves, e.g. ``text_encoder_attention``.
        placement: where weights are while a run needs them; none changes a picture. ``automatic``: on the device as far
            as the plan finds room; ``resident``: all of a part's; ``streamed``: of a denoiser's blocks at the least
            ``blocks_on_cpu`` come for their own call alone, all where that is 0; ``sequential``: all blocks of every
            part, and a part leaves the device after its use.
        compiled: whether a denoiser's blocks are compiled; other last bits, another picture.
        embeddings_on_disk: whether encoded texts are looked for and kept on the disk, where the host has a place for
            them. It decides no picture: options that differ in it alone are equal.
        step_caching: the threshold up to which a step reuses what the blocks of a denoiser gave in an earlier one
            (``layers/step_cache.py``), 0 to 1; another picture. 0 is off.
    """

    transformer_quantization: QuantizationChoice = "model default"
    text_encoder_quantization: QuantizationChoice = "model default"
    transformer_attention: Attention = "default"
    blocks_on_cpu: int = 0
    own: Chosen = field(default_factory=Chosen)
    placement: Placement = "automatic"
    compiled: bool = False
    embeddings_on_disk: bool = field(default=True, compare=False)
    step_caching: float = 0.0

    def streams(self, role: Role) -> int:
        """How many blocks of a part of a role come for their own call alone, at the least."""
        if self.placement == "sequential":
            return ALL_BLOCKS
        if role != "denoiser":
            return 0
        return ALL_BLOCKS if self.placement == "streamed" and not self.blocks_on_cpu else self.blocks_on_cpu

    def quantization(self, role: Role) -> QuantizationChoice:
        """The user's choice for parts of a role; autoencoders are never quantised."""
        if role == "denoiser":
            return self.transformer_quantization
        return self.text_encoder_quantization if role == "encoder" else "none"
