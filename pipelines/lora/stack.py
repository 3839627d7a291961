"""Brings a loaded transformer from the LoRAs that it has to the LoRAs that are wanted, by the cheapest way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ..checkpoint import Checkpoint
from ..errors import FileError, LoraError
from ..files.safetensors import FileStamp
from ..handle import LoraSpec, PipelineHandle, Quantization
from ..models.facts import Recipe
from .file import PART, open_lora, read_lora
from .kinds import Adapter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..models.facts import ModelFacts
    from .kinds.kind import Arithmetic
    from .live import LiveLayer


@dataclass(frozen=True)
class AppliedLora:
    """One LoRA with everything left open by its handle decided.

    Attributes:
        spec: the handle's entry.
        mode: how it is applied.
        arithmetic: of live branches.
    """

    spec: LoraSpec
    mode: Literal["merged", "live"]
    arithmetic: Arithmetic


def resolve(handle: PipelineHandle, recipe: Recipe, quantization: Quantization) -> tuple[AppliedLora, ...]:
    """Decides ``application: auto`` for each LoRA of a handle; a strength of 0 is left out.

    Raises:
        LoraError: ``merged`` is asked for on quantised weights, or of a kind that is never merged.
    """
    applied = []
    for spec in handle.loras:
        mode = spec.application
        if mode == "merged" and quantization != "none":
            raise LoraError(
                f"{spec.name!r} cannot be merged: the transformer is quantised ({quantization}), and a merge would be "
                "rounded away. Set application to 'live' or 'auto', or transformer_quantization to 'none'."
            )
        if mode == "merged" and not spec.mergeable:
            raise LoraError(
                f"{spec.name!r} cannot be merged: it is a {spec.format} file, which AI Toolkit never merges. Set "
                "application to 'live' or 'auto'."
            )
        if mode == "auto":
            mode = "live" if quantization != "none" or not spec.mergeable else recipe.lora_application
        if spec.strength != 0:
            applied.append(AppliedLora(spec, mode, recipe.lora_arithmetic))
    return tuple(applied)


class LoraStack:
    """The LoRAs on one loaded transformer.

    Attributes:
        applied: what is on it now; None after a change that could be neither finished nor undone.
        tensors_read: how many of the checkpoint's tensors were read again so far.
        files_read: how many LoRA files were read so far.
    """

    def __init__(self, transformer: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        self.applied: tuple[AppliedLora, ...] | None = ()
        self.tensors_read = 0
        self.files_read = 0
        self._transformer = transformer
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._merged: set[str] = set()
        self._live: dict[str, LiveLayer] = {}
        self._weights: dict[FileStamp, dict[str, Adapter]] = {}

    def set(self, wanted: tuple[AppliedLora, ...], model: ModelFacts, check: Callable[[], None]) -> None:
        """Applies ``wanted`` and nothing else; ``check`` is called before each weight and raises to interrupt.

        All files are read and checked first. If anything fails after that, the weights are put back as the checkpoint
        has them.

        Raises:
            FileError, LoraError: a file is missing, was replaced by one that does not fit, or holds NaN or Inf.
        """
        if wanted == self.applied:
            return
        weights = [(lora, self._read(lora.spec, model)) for lora in wanted]
        kept = {lora.spec.file for lora in wanted}
        self._weights = {file: value for file, value in self._weights.items() if file in kept}
        merged = [(lora, value) for lora, value in weights if lora.mode == "merged"]
        live = [(lora, value) for lora, value in weights if lora.mode == "live"]
        same_merge = self.applied is not None and [lora for lora, _ in merged] == [
            lora for lora in self.applied if lora.mode == "merged"
        ]
        self.applied = None
        try:
            self._remove_live()
            if not same_merge:
                self._restore()
                self._merge(merged, check)
            self._add_live(live)
        except BaseException:
            self.clear()
            raise
        self.applied = wanted

    def clear(self) -> None:
        """Takes everything off; the weights are the checkpoint's."""
        self._remove_live()
        self._restore()
        self.applied = ()

    def _read(self, spec: LoraSpec, model: ModelFacts) -> dict[str, Adapter]:
        if spec.file not in self._weights:
            if FileStamp.of(spec.file.path) != spec.file:
                raise FileError(f"{spec.name!r} was replaced after its node ran. Run again to use the new file.")
            file = open_lora(spec.file.path, spec.name, model, self._checkpoint)
            self._weights[spec.file] = read_lora(file)
            self.files_read += 1
        return self._weights[spec.file]

    def _restore(self) -> None:
        # the set is emptied last: a restore that is cut off can be run again
        for name, value in self._checkpoint.read(PART, [f"{module}.weight" for module in self._merged]):
            self._put(name.removesuffix(".weight"), value)
            self.tensors_read += 1
        self._merged.clear()

    def _merge(self, loras: Sequence[tuple[AppliedLora, dict[str, Adapter]]], check: Callable[[], None]) -> None:
        for lora, layers in loras:
            for module, pair in layers.items():
                check()
                if not pair.is_zero:
                    self._merged.add(module)
                    weight = self._linear(module).weight
                    self._put(module, pair.merge(weight, lora.spec.strength, self._device))

    def _linear(self, module: str) -> nn.Linear:
        # a quantised layer is a Linear too
        return cast("nn.Linear", self._transformer.get_submodule(module))

    def _put(self, module: str, value: torch.Tensor) -> None:
        """Puts a copy of ``value`` in a weight's place, in that weight's dtype and on its device."""
        import torch

        layer = self._linear(module)
        old = layer.weight
        layer.weight = torch.nn.Parameter(value.to(old.device, old.dtype, copy=True), requires_grad=False)

    def _add_live(self, loras: Sequence[tuple[AppliedLora, dict[str, Adapter]]]) -> None:
        from .live import LiveLayer

        for lora, layers in loras:
            for module, pair in layers.items():
                if pair.is_zero:
                    continue
                if module not in self._live:
                    layer = self._linear(module)
                    self._live[module] = LiveLayer(layer, self._dtype, lora.arithmetic)
                self._live[module].append(pair, lora.spec.strength)

    def _remove_live(self) -> None:
        for layer in self._live.values():
            layer.remove()
        self._live.clear()
