"""Brings a loaded part from the LoRAs that it has to the LoRAs that are wanted, by the cheapest way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from ..errors import FileError, LoraError
from ..files.spans import reading
from ..observer import Pace
from .file import open_lora, read_lora
from .merging import Change, Merging, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..files.header import FileStamp
    from ..handle import LoraSpec
    from ..machine.residence import Residence
    from ..models.facts import ModelFacts
    from ..models.recipe import Recipe
    from ..observer import Observer
    from ..options import Arithmetic, MergeArithmetic
    from ..weights.checkpoint import Checkpoint
    from ..weights.source import Source
    from .live import LiveLayer

_KEPT_FILES = 1 << 30  # bytes of LoRA files that are kept in memory beside those that are applied

_FileKey = tuple["FileStamp", "FileStamp | None"]


@dataclass(frozen=True)
class AppliedLora:
    """One LoRA on one part, with everything left open by its handle decided.

    Attributes:
        spec: the handle's entry.
        part: which part.
        mode: how it is applied.
        arithmetic: of live branches.
        merge_arithmetic: of a merge, see :class:`..models.recipe.Recipe`.
    """

    spec: LoraSpec
    part: str
    mode: Literal["merged", "live"]
    arithmetic: Arithmetic
    merge_arithmetic: MergeArithmetic

    @property
    def merges(self) -> tuple[float, ...]:
        """The strengths at which it is merged, one after the other."""
        strength = self.spec.strength
        # by the absolute value: network_mixins.py, ToolkitModuleMixin.merge_out
        return (strength, -abs(strength)) if self.spec.taken_off else (strength,)

    @property
    def live_strength(self) -> float:
        """The strength of its live branches."""
        return sum(self.merges)


def resolve(loras: Sequence[LoraSpec], recipe: Recipe, held: dict[str, str]) -> tuple[AppliedLora, ...]:
    """Decides ``application: auto`` for each LoRA and part; one that adds nothing is left out.

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
            lora = AppliedLora(spec, part, mode, spec.arithmetic or recipe.lora_arithmetic, recipe.merge_arithmetic)
            if (spec.strength if mode == "merged" else lora.live_strength) != 0:
                applied.append(lora)
    return tuple(applied)


class LoraWork(NamedTuple):
    """What a stack did since it was made: LoRA files read, the part's tensors merged into, and made as they were."""

    files_read: int
    tensors_merged: int
    tensors_restored: int


class LoraStack:
    """The LoRAs on one loaded part.

    Args:
        module: whose names the parameters have.
        source: of the part.
        dtype: what it runs in.
        residence: where its tensors are.

    Attributes:
        applied: what is on it now; None after a change that could be neither finished nor undone.
        merging: what is merged.
    """

    def __init__(self, module: nn.Module, source: Source, dtype: torch.dtype, residence: Residence) -> None:
        self.applied: tuple[AppliedLora, ...] | None = ()
        self.merging = Merging(module, source, residence)
        self._files_read = 0
        self._module = module
        self._source = source
        self._dtype = dtype
        self._residence = residence
        self._live: dict[str, LiveLayer] = {}
        self._live_of: list[AppliedLora] = []
        # the least used first
        self._weights: dict[_FileKey, Weights] = {}

    @property
    def work(self) -> LoraWork:
        return LoraWork(self._files_read, self.merging.tensors_merged, self.merging.tensors_restored)

    def set(
        self,
        wanted: tuple[AppliedLora, ...],
        model: ModelFacts,
        checkpoint: Checkpoint,
        observer: Observer,
    ) -> None:
        """Applies ``wanted`` and nothing else; the observer is asked for interruption before each weight.

        All files are read and checked first. If anything fails after that, the weights are put back as the checkpoint
        has them.

        Raises:
            FileError, LoraError: a file is missing, was replaced by one that does not fit, or holds NaN or Inf.
        """
        if wanted == self.applied:
            return
        weights = [(lora, self._read(lora.spec, model, checkpoint, observer)) for lora in wanted]
        self._forget_files({_key(lora.spec) for lora in wanted})
        merged: dict[str, list[Change]] = {}
        live: list[tuple[AppliedLora, Weights]] = []
        for lora, layers in weights:
            own = {layer: value for layer, value in layers.items() if lora.mode == "merged" or layer.in_place}
            for layer, adapter in own.items():
                if not adapter.is_zero:
                    changes = merged.setdefault(layer.parameter, [])
                    changes += (
                        Change(_key(lora.spec), layer, adapter, by, lora.merge_arithmetic) for by in lora.merges
                    )
            live.append((lora, {layer: value for layer, value in layers.items() if layer not in own}))
        names = _names(wanted)
        observer.stage(f"applying {names} to {self._source.component}")
        before = self.merging.tensors_merged
        self.applied = None
        try:
            self._set_live(live)
            self.merging.set(merged, Pace(observer, lambda: self._merged(names, before, len(merged))))
        except BaseException:
            self.clear()
            raise
        self.applied = wanted

    def _merged(self, names: str, before: int, total: int) -> str:
        done = self.merging.tensors_merged - before
        return f"merging {names} into {self._source.component}: {done} of {total} tensors"

    def clear(self) -> None:
        """Takes everything off; the weights are the checkpoint's."""
        self._remove_live()
        self.merging.clear()
        self.applied = ()

    def _read(self, spec: LoraSpec, model: ModelFacts, checkpoint: Checkpoint, observer: Observer) -> Weights:
        key = _key(spec)
        found = self._weights.pop(key, None)
        if found is None:
            what = f"reading {spec.name}"
            observer.stage(what)
            file = open_lora(spec.file.path, spec.name, model, checkpoint)
            if (file.stamp, file.companion) != key:
                raise FileError(f"{spec.name!r} was replaced after its node ran. Run again to use the new file.")
            found = read_lora(file, self._source.component, reading(observer, what, file.stamp.size))
            self._files_read += 1
        self._weights[key] = found
        return found

    def _forget_files(self, wanted: Collection[_FileKey]) -> None:
        """Keeps others than those that are wanted, the latest, as far as there is room: stacks may take turns."""
        others = [key for key in self._weights if key not in wanted]
        # as large as in the file, or twice that where a kind has them in float32
        while sum(stamp.size for stamp, _ in others) > _KEPT_FILES:
            del self._weights[others.pop(0)]

    def _set_live(self, loras: Sequence[tuple[AppliedLora, Weights]]) -> None:
        """Hangs branches on layers; where the same ones hang there, sets their strengths."""
        of = [lora for lora, _ in loras]
        if list(map(_strong, of)) == list(map(_strong, self._live_of)):
            for number, (new, old) in enumerate(zip(of, self._live_of, strict=True)):
                if new != old:
                    for layer in self._live.values():
                        layer.set_strength(number, new.live_strength, self._write)
            self._live_of = of
            return
        from .kinds.branches import DecomposedBranch, LayerRows
        from .live import LiveLayer

        self._remove_live()
        for number, (lora, layers) in enumerate(loras):
            for layer, adapter in layers.items():
                if adapter.is_zero:
                    continue
                if layer.module not in self._live:
                    module = self._module.get_submodule(layer.module)
                    self._live[layer.module] = LiveLayer(module)
                branch = adapter.branch(lora.live_strength, self._dtype, lora.arithmetic)
                if layer.whole:
                    assert isinstance(branch, DecomposedBranch)
                    find = self._module.get_submodule
                    branch.see([LayerRows(cast("nn.Linear", find(name)), rows) for name, rows in layer.whole])
                self._live[layer.module].append(number, branch, layer.into)
        self._live_of = of

    def _write(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        self._residence.home(module, name).copy_(value)
        self._residence.changed(module, name)

    def _remove_live(self) -> None:
        for layer in self._live.values():
            layer.remove()
        self._live.clear()
        self._live_of = []


def _names(loras: Sequence[AppliedLora]) -> str:
    own = ", ".join(lora.spec.name for lora in loras if not lora.spec.taken_off) or "no LoRA"
    rounds = sum(lora.spec.taken_off for lora in loras)
    return f"{own}, and what {rounds} earlier {'round' if rounds == 1 else 'rounds'} left," if rounds else own


def _key(spec: LoraSpec) -> _FileKey:
    return spec.file, spec.companion


def _strong(lora: AppliedLora) -> AppliedLora:
    """The same at strength 1."""
    return replace(lora, spec=replace(lora.spec, strength=1.0))
