"""What this machine and a run come to: gathers and keeps the facts that ``machine/plan.py`` decides from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..layers.holding import holding_of
from ..layers.measure import expected_sizes
from ..machine.plan import PartNeeds, PartSizes, Plan, make_plan
from ..options import torch_dtype
from ..weights.source import packed_as
from .wanted import PartKey

if TYPE_CHECKING:
    from ..handle import PipelineHandle, Recovery
    from ..lora.stack import AppliedLora
    from ..machine.machine import Machine
    from ..models.model import Model
    from ..models.recipe import Recipe
    from ..options import Quantization
    from ..parts.part import Part

_MOST_SIZES = 32  # measured parts that are kept
_LORA_GROWTH = 2  # a live branch may be float32 where its file is bfloat16


@dataclass(frozen=True, eq=False)
class Asked:
    """What a run asks for: the code of its model, its handle, its recipe."""

    model: Model
    handle: PipelineHandle
    recipe: Recipe

    def key(self, part: str, quantization: Quantization) -> PartKey:
        """What a part is in one quantisation."""
        source, recovery = self.handle.checkpoint.source(part), self._recovery(part)
        # what quantisation leaves alone tells nothing apart where there is none
        plain = only = ()
        if recovery is not None and quantization != "none":
            only = recovery.layers
        elif quantization != "none":
            plain = self.recipe.plain.get(part, ())
        return PartKey(self.model.facts.id, source, self.handle.dtype, quantization, plain, only)

    def held(self, key: PartKey) -> str:
        """How a part's weights are held where LoRAs are not merged into them; else empty."""
        recovery = self._recovery(key.part)
        # AI Toolkit merges nothing under an adapter, whose uint8 leaves the weights as they are
        return key.held_as or ("" if recovery is None else recovery.qtype)

    def _recovery(self, part: str) -> Recovery | None:
        recovery = self.handle.recovery
        return recovery if recovery is not None and recovery.part == part else None

    def quantizations(self, part: Part) -> tuple[Quantization, Quantization | None]:
        """What the handle means, and what else the plan may choose."""
        if (recovery := self._recovery(part.name)) is not None:
            return recovery.quantization, None
        choice, facts = self.handle.options.quantization(part.role), self.model.facts
        if choice != "model default":
            return choice, None
        stated = facts.quantization.get(part.name, "none")
        fallback = facts.low_memory_quantization.get(part.name)
        if (stated != "none" or fallback is not None) and packed_as(self.handle.checkpoint.source(part.name)):
            return "none", None
        return stated, fallback


class Planner:
    """Makes the keys and plans of an engine's runs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._sizes: dict[PartKey, PartSizes] = {}

    def keys(self, asked: Asked) -> dict[str, PartKey]:
        """What is to be loaded, with the quantisation decided for this machine: the same in every run."""
        found = {}
        for name, part in asked.model.parts.items():
            decided, fallback = asked.quantizations(part)
            if fallback is not None:
                sizes = self._in_each(asked, part)
                decided = PartNeeds(name, part.role, decided, sizes, fallback).decide(self._machine.ram())
            found[name] = asked.key(name, decided)
        return found

    def plan(self, asked: Asked, loras: Sequence[AppliedLora], latents: Sequence[int] | None) -> Plan:
        """How a run holds and places its parts.

        Args:
            asked: the run.
            loras: what is applied in it.
            latents: shape of one picture's; None where there will be none.
        """
        needs = [self._needs(asked, part, loras, latents) for part in asked.model.parts.values()]
        return make_plan(needs, self._machine.device_memory(), self._machine.ram())

    def _needs(
        self, asked: Asked, part: Part, loras: Sequence[AppliedLora], latents: Sequence[int] | None
    ) -> PartNeeds:
        stated, fallback = asked.quantizations(part)
        own = [lora.spec.file for lora in loras if (lora.part, lora.mode) == (part.name, "live")]
        live = {file.path: file.size for file in own}
        options = asked.handle.options
        return PartNeeds(
            part.name,
            part.role,
            stated,
            self._in_each(asked, part),
            fallback,
            part.activation_bytes(latents, torch_dtype(asked.handle.dtype)),
            _LORA_GROWTH * sum(live.values()),
            options.streams(part.role) if self._machine.device() != "cpu" else 0,
            options.placement == "resident",
        )

    def _in_each(self, asked: Asked, part: Part) -> dict[Quantization, PartSizes]:
        """The part's sizes in each quantisation that may be chosen."""
        stated, fallback = asked.quantizations(part)
        choices: list[Quantization] = [stated] if fallback is None else [stated, fallback]
        return {choice: self._measure(part, asked.key(part.name, choice)) for choice in choices}

    def _measure(self, part: Part, key: PartKey) -> PartSizes:
        if key not in self._sizes:
            root = part.outline(key.source)
            holding = holding_of(key.quantization, key.plain, key.only)
            infos = key.source.tensor_infos()
            found = expected_sizes(root, part.blocks(root), infos, torch_dtype(key.dtype), holding)
            while len(self._sizes) >= _MOST_SIZES:
                del self._sizes[next(iter(self._sizes))]
            self._sizes[key] = found
        return self._sizes[key]
