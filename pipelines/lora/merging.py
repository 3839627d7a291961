"""LoRAs merged into a loaded part's tensors, and their undoing: only tensors whose change is another one are touched.

Each change is made from the tensor as the checkpoint has it: kept in memory where there is room for that, which takes
none where the tensor lies in its file's pages, else read again. Changes that only follow those that are in a tensor are
made from what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..files.mapping import is_mapped, let_go
from .kinds.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..machine.residence import Residence
    from ..options import MergeArithmetic
    from ..weights.source import Source
    from .kinds import Adapter
    from .layers import LoraLayer

Weights = Mapping["LoraLayer", "Adapter"]


@dataclass(frozen=True, eq=False)
class Change:
    """One layer of one LoRA in one parameter.

    Attributes:
        file: tells the LoRA from others.
        layer: what it changes.
        adapter: how.
        strength: any number but 0.
        arithmetic: how; see :class:`..models.recipe.Recipe`.
    """

    file: object
    layer: LoraLayer
    adapter: Adapter
    strength: float
    arithmetic: MergeArithmetic

    @property
    def mark(self) -> tuple[object, ...]:
        """Equal marks mean equal changes."""
        return self.file, tuple(self.layer.keys.items()), self.layer.rows, self.strength, self.arithmetic

    @property
    def stored(self) -> bool:
        """Whether it is merged into the tensor as it is stored, and not as it runs."""
        return self.arithmetic == "stored"

    def merged(self, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows that it changes, with the change: see :meth:`.kinds.kind.Adapter.merge`."""
        return self.adapter.merge(weight, self.strength, workspace, out, self.arithmetic)


@dataclass(frozen=True, eq=False)
class _Original:
    """A tensor as the checkpoint has it, and the memory that it takes: none where it is left in its file."""

    value: torch.Tensor
    size: int


class Merging:
    """What is merged into one part.

    Args:
        module: whose names the parameters have.
        source: of the part.
        residence: where its tensors are.

    Attributes:
        room: bytes that originals may take.
        tensors_merged: how many of the part's tensors were merged into so far.
        tensors_restored: how many were made the checkpoint's again so far.
    """

    def __init__(self, module: nn.Module, source: Source, residence: Residence) -> None:
        self.room = 0
        self.tensors_merged = 0
        self.tensors_restored = 0
        self._module = module
        self._source = source
        self._residence = residence
        # parameter -> marks of what is in it; empty while it is being changed
        self._done: dict[str, tuple[object, ...]] = {}
        self._originals: dict[str, _Original] = {}
        self._shares: Counter[int] | None = None

    def set(self, wanted: Mapping[str, Sequence[Change]], check: Callable[[], None]) -> None:
        """Merges ``wanted``, parameter -> changes in their order, and nothing else.

        ``check`` is called before each change and raises to interrupt. What it leaves then, :meth:`clear` mends.
        """
        # again for each change: a part's tensors may have been moved meanwhile
        self._shares = None
        marks = {name: tuple(change.mark for change in found) for name, found in wanted.items()}
        self._restore([name for name in self._done if name not in wanted])
        new = [name for name in wanted if self._done.get(name) != marks[name]]
        begun = {name: self._begun(name, wanted[name], marks[name]) for name in new}
        again = [
            name
            for name in new
            if wanted[name][0].stored or (name in self._done and name not in self._originals and not begun[name])
        ]
        workspace = Workspace(self._residence.device)
        for name, value in self._read(again):
            base = value if wanted[name][0].stored else value.to(self._home(name).dtype)
            self._change(name, wanted[name], base, workspace, check)
            self._done[name] = marks[name]
        for name in new:
            if name not in again:
                base = self._home(name) if begun[name] else None
                self._change(name, wanted[name][begun[name] :], base, workspace, check)
                self._done[name] = marks[name]

    def _begun(self, name: str, changes: Sequence[Change], marks: tuple[object, ...]) -> int:
        """How many of a parameter's changes, from the first on, are what is in it, rounded to what it is held in."""
        done = self._done.get(name, ())
        return 0 if changes[0].stored or marks[: len(done)] != done else len(done)

    def clear(self) -> None:
        """Takes everything off; the weights are the checkpoint's."""
        self._shares = None
        self._restore(list(self._done))

    def forget_originals(self) -> None:
        """Gives up the memory of the originals; they are read again where they are needed."""
        self._originals = {
            name: _Original(kept.value, 0) for name, kept in self._originals.items() if is_mapped(kept.value)
        }
        for kept in self._originals.values():
            let_go(kept.value)

    def _change(
        self,
        name: str,
        changes: Sequence[Change],
        base: torch.Tensor | None,
        workspace: Workspace,
        check: Callable[[], None],
    ) -> None:
        """Changes one parameter, from ``base``, or from its original, or as it is where nothing was merged yet."""
        now = self._home(name)
        if name not in self._done:
            self._keep(name, now)
        if base is None:
            base = self._originals[name].value if name in self._originals else now
        whole = changes[0] if len(changes) == 1 and changes[0].layer.into is None else None
        check()
        target = self._target(name, now)
        # from here on it may be neither
        self._done[name] = ()
        if whole is not None:
            self._merge_whole(whole, base, target, workspace)
        else:
            value = base.clone() if base.dtype != target.dtype else _copied(target, base)
            for change in changes:
                check()
                rows = value[slice(*(change.layer.into or (None,)))]
                _copy(rows, change.merged(rows, workspace))
            if value is not target:
                _copy(target, value)
        self._store(name, target, now)
        if name in self._originals and not self._originals[name].size:
            # it comes again from its file when it is read
            let_go(self._originals[name].value)
        self.tensors_merged += 1

    def _merge_whole(self, change: Change, base: torch.Tensor, target: torch.Tensor, workspace: Workspace) -> None:
        import torch

        with torch.no_grad():
            if base.dtype == target.dtype and target.device == torch.device(workspace.device):
                change.merged(base, workspace, target)
                return
        merged = change.merged(base, workspace)
        # one rounding more where the checkpoint's dtype is not the run's
        _copy(target, merged if base.dtype == target.dtype else merged.to(base.dtype))

    def _keep(self, name: str, original: torch.Tensor) -> None:
        size = original.numel() * original.element_size()
        fits = size <= self.room - sum(kept.size for kept in self._originals.values())
        if fits or is_mapped(original):
            self._originals[name] = _Original(original, size if fits else 0)

    def _target(self, name: str, now: torch.Tensor) -> torch.Tensor:
        """What the changed values are written to: the parameter itself, where nobody else has a share in it."""
        import torch

        kept = self._originals.get(name)
        if (kept is None or kept.value is not now) and self._is_alone(now):
            return now
        target = torch.empty_like(now)
        return torch.nn.Parameter(target, requires_grad=False) if isinstance(now, torch.nn.Parameter) else target

    def _store(self, name: str, value: torch.Tensor, now: torch.Tensor) -> None:
        module, leaf = self._owner(name)
        if value is now:
            self._residence.changed(module, leaf)
        else:
            self._residence.replace(module, leaf, value)

    def _restore(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._originals:
                self._residence.replace(*self._owner(name), self._originals.pop(name).value)
                self.tensors_restored += 1
                del self._done[name]
        # one by one: a restore that is cut off can be run again. Files that nothing was merged from may be gone
        for name, value in self._read([name for name in names if name in self._done]):
            now = self._home(name)
            target = self._target(name, now)
            _copy(target, value)
            self._store(name, target, now)
            self.tensors_restored += 1
            del self._done[name]

    def _read(self, names: Sequence[str]) -> Iterable[tuple[str, torch.Tensor]]:
        from ..files.packed import dense

        for name, value in self._source.read(names) if names else ():
            yield name, dense(value)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        owner, _, leaf = name.rpartition(".")
        return self._module.get_submodule(owner), leaf

    def _home(self, name: str) -> torch.Tensor:
        return self._residence.home(*self._owner(name))

    def _is_alone(self, value: torch.Tensor) -> bool:
        """True for a tensor whose memory no other one of the part has a share in."""
        if self._shares is None:
            self._shares = Counter(map(_memory, self._residence.homes()))
        return type(value.data).__name__ == "Tensor" and self._shares[_memory(value)] == 1


def _copy(target: torch.Tensor, value: torch.Tensor) -> None:
    """Writes values, rounded to the target's dtype before they leave the device."""
    import torch

    with torch.no_grad():
        target.copy_(value if value.device == target.device else value.to(target.dtype))


def _copied(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if value is not target:
        _copy(target, value)
    return target


def _memory(value: torch.Tensor) -> int:
    """Tells the memory of one tensor from another's; of those that are made of several, the tensor itself."""
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(value)
