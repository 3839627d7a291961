"""What a run means by the parts of its model: decided once, and handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..weights.source import packed_as

if TYPE_CHECKING:
    from ..handle import PipelineHandle
    from ..lora.stack import AppliedLora
    from ..machine.plan import Plan
    from ..models.model import Model
    from ..options import DType, Quantization
    from ..weights.source import Source


@dataclass(frozen=True)
class PartKey:
    """Tells one loaded part from another: equal keys mean equal weights.

    Attributes:
        model: id.
        source: where it lies.
        dtype: what it runs in.
        quantization: how its layers are held.
        plain: names of layers that are not quantised.
        only: names of the layers that alone are quantised; empty is all.
    """

    model: str
    source: Source
    dtype: DType
    quantization: Quantization
    plain: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """Its name in the model."""
        return self.source.component

    @property
    def held_as(self) -> str:
        """How the weights are held where they cannot be written to, e.g. ``qfloat8``; else empty."""
        return self.quantization if self.quantization != "none" else packed_as(self.source)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Made by :meth:`.engine.Engine.resolve`.

    Attributes:
        model: the code.
        handle: as it came in.
        keys: part -> what is to be loaded.
        loras: what is applied to which part, and how.
        plan: how the parts are held and placed.
    """

    model: Model
    handle: PipelineHandle
    keys: Mapping[str, PartKey]
    loras: tuple[AppliedLora, ...]
    plan: Plan

    def loras_of(self, part: str) -> tuple[AppliedLora, ...]:
        return tuple(lora for lora in self.loras if lora.part == part)
