"""What this machine and a handle come to: gathers the facts that ``plan.py`` decides from, and keeps what it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .handle import DType, PipelineHandle, Quantization, QuantizationChoice
from .loading import torch_dtype
from .models import find_model
from .plan import DeviceMemory, PartNeeds, PartSizes, Plan, make_plan
from .sources.source import Source, packed_as

if TYPE_CHECKING:
    from .lora.stack import AppliedLora
    from .models.facts import ModelFacts
    from .models.runtime import ModelRuntime
    from .sizes import Size

_MOST_SIZES = 32  # measured parts that are kept
_LORA_GROWTH = 2  # a live branch may be float32 where its file is bfloat16


class MemoryPlanner:
    """Makes the plans of an engine.

    Args:
        runtime: finds a model's code.
        device: finds the compute device.
        memory: reads its memory; None where it has none of its own.
        ram: reads the computer's memory in total, in bytes.
    """

    def __init__(
        self,
        runtime: Callable[[ModelFacts], ModelRuntime],
        device: Callable[[], str],
        memory: Callable[[], DeviceMemory | None],
        ram: Callable[[], int],
    ) -> None:
        self._runtime = runtime
        self._device = device
        self._memory = memory
        self._ram = ram
        self._sizes: dict[tuple[str, Source, DType, Quantization], PartSizes] = {}
        self._current: tuple[PipelineHandle, Plan] | None = None

    def quantization(self, handle: PipelineHandle, part: str) -> Quantization:
        """How the handle's part is held on this machine: the same in every run."""
        stated, fallback = self._choices(handle, part)
        if fallback is None:
            return stated
        return self._needs(handle, part, None, ()).decide(self._ram())

    def make(self, handle: PipelineHandle, size: Size | None, loras: Sequence[AppliedLora]) -> Plan:
        """The plan of a run that begins now; it stays in force until the next one.

        Args:
            handle: whose parts.
            size: of the pictures; None where there will be none.
            loras: the run's.
        """
        needs = [self._needs(handle, part, size, loras) for part in find_model(handle.model).parts]
        plan = make_plan(needs, self._memory(), self._ram())
        self._current = (_bare(handle), plan)
        return plan

    def of(self, handle: PipelineHandle) -> Plan:
        """The plan in force; a new one, without pictures, where that was made for another handle."""
        if self._current is not None and self._current[0] == _bare(handle):
            return self._current[1]
        return self.make(handle, None, ())

    def _choices(self, handle: PipelineHandle, part: str) -> tuple[Quantization, Quantization | None]:
        """What the handle means, and what else the plan may choose."""
        choices: dict[str, QuantizationChoice] = {
            "transformer": handle.options.transformer_quantization,
            "text_encoder": handle.options.text_encoder_quantization,
        }
        choice = choices.get(part, "none")
        if choice != "model default":
            return choice, None
        model = find_model(handle.model)
        stated, fallback = model.quantization[part], model.low_memory_quantization.get(part)
        if (stated != "none" or fallback is not None) and packed_as(handle.checkpoint.source(part)):
            return "none", None
        return stated, fallback

    def _needs(self, handle: PipelineHandle, part: str, size: Size | None, loras: Sequence[AppliedLora]) -> PartNeeds:
        stated, fallback = self._choices(handle, part)
        source = handle.checkpoint.source(part)
        live = {lora.spec.file.path: lora.spec.file.size for lora in loras if (lora.part, lora.mode) == (part, "live")}
        streamed = handle.options.blocks_on_cpu if part == "transformer" and self._device() != "cpu" else 0
        runtime = self._runtime(find_model(handle.model))
        return PartNeeds(
            part,
            stated,
            {choice: self._measure(handle, source, choice) for choice in (stated, fallback) if choice is not None},
            fallback,
            runtime.activation_bytes(part, size, torch_dtype(handle.dtype)),
            _LORA_GROWTH * sum(live.values()),
            streamed,
        )

    def _measure(self, handle: PipelineHandle, source: Source, quantization: Quantization) -> PartSizes:
        key = (handle.model, source, handle.dtype, quantization)
        if key not in self._sizes:
            from .measure import expected_sizes

            runtime = self._runtime(find_model(handle.model))
            module = runtime.empty(source)
            blocks = runtime.blocks(source.component, module)
            dtype = torch_dtype(handle.dtype)
            found = expected_sizes(module, blocks, source.tensor_infos(), dtype, quantization)
            while len(self._sizes) >= _MOST_SIZES:
                del self._sizes[next(iter(self._sizes))]
            self._sizes[key] = found
        return self._sizes[key]


def _bare(handle: PipelineHandle) -> PipelineHandle:
    """LoRAs move only bytes that the run's own plan counts."""
    return replace(handle, loras=())
