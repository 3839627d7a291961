"""Brings a loaded part from the LoRAs that it has to the LoRAs that are wanted, by the cheapest way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import FileError, LoraError
from .file import open_lora, read_lora
from .kinds import Adapter
from .layers import LoraLayer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.header import FileStamp
    from ..handle import LoraSpec
    from ..machine.residence import Residence
    from ..models.facts import ModelFacts
    from ..models.recipe import Recipe
    from ..options import Arithmetic
    from ..weights.checkpoint import Checkpoint
    from ..weights.source import Source
    from .live import LiveLayer

Weights = dict[LoraLayer, Adapter]


@dataclass(frozen=True)
class AppliedLora:
    """One LoRA on one part, with everything left open by its handle decided.

    Attributes:
        spec: the handle's entry.
        part: which part.
        mode: how it is applied.
        arithmetic: of live branches.
        merge_dtype: what merged weights are rounded to, see :class:`..models.recipe.Recipe`.
    """

    spec: LoraSpec
    part: str
    mode: Literal["merged", "live"]
    arithmetic: Arithmetic
    merge_dtype: Literal["run", "stored"]


def resolve(loras: Sequence[LoraSpec], recipe: Recipe, held: dict[str, str]) -> tuple[AppliedLora, ...]:
    """Decides ``application: auto`` for each LoRA and part; a strength of 0 is left out.

    Args:
        loras: the handle's.
        recipe: the sampler's.
        held: part -> how its weights are held where they cannot be written to (``qfloat8``, ``GGUF Q4_K``), else empty.

    Raises:
        LoraError: ``merged`` is asked for on such weights, or of a kind that is never merged.
    """
    applied = []
    for spec in loras:
        if spec.application == "merged" and not spec.mergeable:
            raise LoraError(
                f"{spec.name!r} cannot be merged: it is a {spec.format} file, which its trainer never merges. Set "
                "application to 'live' or 'auto'."
            )
        for part in spec.parts:
            mode = spec.application
            if mode == "merged" and held[part]:
                raise LoraError(
                    f"{spec.name!r} cannot be merged: the {part} is quantised ({held[part]}), and a merge would be "
                    f"rounded away. Set application to 'live' or 'auto', or use an unquantised {part}."
                )
            if mode == "auto":
                mode = "live" if held[part] or not spec.mergeable else recipe.lora_application
            if spec.strength != 0:
                applied.append(
                    AppliedLora(spec, part, mode, spec.arithmetic or recipe.lora_arithmetic, recipe.merge_dtype)
                )
    return tuple(applied)


class LoraStack:
    """The LoRAs on one loaded part.

    Attributes:
        applied: what is on it now; None after a change that could be neither finished nor undone.
        tensors_read: how many of the checkpoint's tensors were read again so far.
        tensors_merged: how many of the part's tensors were merged into so far.
        files_read: how many LoRA files were read so far.
    """

    def __init__(self, module: nn.Module, source: Source, dtype: torch.dtype, residence: Residence) -> None:
        self.applied: tuple[AppliedLora, ...] | None = ()
        self.tensors_read = 0
        self.tensors_merged = 0
        self.files_read = 0
        self._module = module
        self._source = source
        self._dtype = dtype
        self._residence = residence
        self._merged: dict[str, LoraLayer] = {}
        self._merged_of: list[AppliedLora] = []
        self._memory: Counter[int] | None = None
        self._live: dict[str, LiveLayer] = {}
        self._weights: dict[tuple[FileStamp, FileStamp | None], Weights] = {}

    def set(
        self,
        wanted: tuple[AppliedLora, ...],
        model: ModelFacts,
        checkpoint: Checkpoint,
        check: Callable[[], None],
    ) -> None:
        """Applies ``wanted`` and nothing else; ``check`` is called before each weight and raises to interrupt.

        All files are read and checked first. If anything fails after that, the weights are put back as the checkpoint
        has them.

        Raises:
            FileError, LoraError: a file is missing, was replaced by one that does not fit, or holds NaN or Inf.
        """
        if wanted == self.applied:
            return
        weights = [(lora, self._read(lora.spec, model, checkpoint)) for lora in wanted]
        kept = {(lora.spec.file, lora.spec.companion) for lora in wanted}
        self._weights = {file: value for file, value in self._weights.items() if file in kept}
        merged, live = [], []
        for lora, layers in weights:
            small = {layer: value for layer, value in layers.items() if layer.in_place}
            merged.append((lora, layers if lora.mode == "merged" else small))
            live.append((lora, {} if lora.mode == "merged" else {k: v for k, v in layers.items() if k not in small}))
        merged = [(lora, layers) for lora, layers in merged if layers]
        # again for each change: a part's tensors may have been moved meanwhile
        self._memory = None
        same_merge = self.applied is not None and [lora for lora, _ in merged] == self._merged_of
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

    def _read(self, spec: LoraSpec, model: ModelFacts, checkpoint: Checkpoint) -> Weights:
        key = (spec.file, spec.companion)
        if key not in self._weights:
            file = open_lora(spec.file.path, spec.name, model, checkpoint)
            if (file.stamp, file.companion) != key:
                raise FileError(f"{spec.name!r} was replaced after its node ran. Run again to use the new file.")
            self._weights[key] = read_lora(file, self._source.component)
            self.files_read += 1
        return self._weights[key]

    def _restore(self) -> None:
        from ..files.packed import dense

        # emptied last: a restore that is cut off can be run again. Files that nothing was merged from may be gone
        for name, value in self._source.read(self._merged) if self._merged else ():
            self._put(self._merged[name], dense(value))
            self.tensors_read += 1
        self._merged.clear()
        self._merged_of = []

    def _merge(self, loras: Sequence[tuple[AppliedLora, Weights]], check: Callable[[], None]) -> None:
        from ..files.packed import dense

        # parameter -> what is added to it, in list order
        changes: dict[str, list[tuple[LoraLayer, Adapter, AppliedLora]]] = {}
        for lora, layers in loras:
            for layer, adapter in layers.items():
                if not adapter.is_zero:
                    changes.setdefault(layer.parameter, []).append((layer, adapter, lora))
        stored = [name for name, found in changes.items() if found[0][2].merge_dtype == "stored"]
        for name, value in self._source.read(stored) if stored else ():
            self._change(changes.pop(name), dense(value), check)
        for found in changes.values():
            self._change(found, self._owner(found[0][0]), check)
        self._merged_of = [lora for lora, _ in loras]

    def _change(
        self, changes: list[tuple[LoraLayer, Adapter, AppliedLora]], value: torch.Tensor, check: Callable[[], None]
    ) -> None:
        # a copy: the parameter stays as it is until all of its rows are done
        value = value.clone()
        for layer, adapter, lora in changes:
            check()
            rows = value[slice(*(layer.into or (None,)))]
            rows.copy_(adapter.merge(rows, lora.spec.strength, self._residence.device))
        layer = changes[0][0]
        self._merged[layer.parameter] = layer
        self._put(layer, value)
        self.tensors_merged += 1

    def _owner(self, layer: LoraLayer) -> torch.Tensor:
        """The parameter that a layer changes, at home."""
        return self._residence.home(self._module.get_submodule(layer.module), layer.leaf)

    def _put(self, layer: LoraLayer, value: torch.Tensor) -> None:
        """Puts ``value`` in a parameter's place, in that parameter's dtype; where it is on the device, there too.

        In place where nobody else has the parameter: a new tensor for each layer leaves holes in the process' memory
        that no other one fits into.
        """
        import torch

        module, old = self._module.get_submodule(layer.module), self._owner(layer)
        if self._is_alone(old) and old.shape == value.shape:
            with torch.no_grad():
                old.copy_(value)
            self._residence.changed(module, layer.leaf)
            return
        new = value.to(old.device, old.dtype, copy=True)
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=False)
        self._residence.replace(module, layer.leaf, new)

    def _is_alone(self, value: torch.Tensor) -> bool:
        """True for a tensor whose memory no other one of the part has a share in."""
        if self._memory is None:
            self._memory = Counter(map(_memory, self._residence.homes()))
        return type(value.data).__name__ == "Tensor" and self._memory[_memory(value)] == 1

    def _add_live(self, loras: Sequence[tuple[AppliedLora, Weights]]) -> None:
        from .live import LiveLayer

        for lora, layers in loras:
            for layer, adapter in layers.items():
                if adapter.is_zero:
                    continue
                if layer.module not in self._live:
                    module = self._module.get_submodule(layer.module)
                    self._live[layer.module] = LiveLayer(module, self._dtype)
                self._live[layer.module].append(adapter, lora.spec.strength, lora.arithmetic, layer.into)

    def _remove_live(self) -> None:
        for layer in self._live.values():
            layer.remove()
        self._live.clear()


def _memory(value: torch.Tensor) -> int:
    """Tells the memory of one tensor from another's; of those that are made of several, the tensor itself."""
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(value)
