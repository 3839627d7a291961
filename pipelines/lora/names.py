"""Every name that a LoRA file may give to a layer of a model, looked up whole: underscores cannot be taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ..weights.pieces import Piece

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint
    from ..weights.source import Source


@dataclass(frozen=True)
class Target:
    """What a name in a file stands for.

    Attributes:
        part: of the model.
        name: by the file's naming, without the prefix, dots between its steps.
        pieces: of the model's modules; their rows lie below each other in the file's one.
        spellings: indices of the spellings that write it so.
    """

    part: str
    name: str
    pieces: tuple[Piece, ...]
    spellings: frozenset[int]


class Rows(NamedTuple):
    """Where the rows of one piece are, each time the first and the one after the last.

    Attributes:
        held: in what the file holds.
        into: in the model's parameter; None is all of it.
    """

    held: tuple[int, int]
    into: tuple[int, int] | None


@dataclass(frozen=True)
class Names:
    """The names of one model's layers.

    Attributes:
        targets: name as a file writes it, without the suffix -> what it stands for.
        shapes: part -> parameter -> shape.
    """

    targets: Mapping[str, Target]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    def rows(self, target: Target, leaf: str) -> list[Rows] | None:
        """Those of each piece's ``leaf``; None where a module has none. Raises ValueError where they do not divide."""
        found: list[Rows] = []
        for piece in target.pieces:
            shape = self.shapes[target.part].get(f"{piece.module}.{leaf}")
            if shape is None:
                return None
            first, last = piece.rows(shape[0])
            start = found[-1].held[1] if found else 0
            found.append(Rows((start, start + last - first), None if piece.whole else (first, last)))
        return found


def names_of(model_id: str, checkpoint: Checkpoint) -> Names:
    """The names for the weights of a checkpoint, from its files' headers."""
    return _names(model_id, checkpoint)


@lru_cache(maxsize=8)
def _names(model_id: str, checkpoint: Checkpoint) -> Names:
    from ..models import find_model

    facts = find_model(model_id).lora
    shapes = {part: _shapes(checkpoint.source(part)) for part in dict.fromkeys(s.part for s in facts.spellings)}
    targets: dict[str, Target] = {}
    for index, spelling in enumerate(facts.spellings):
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in shapes[spelling.part]))
        table = {module: (Piece(module),) for module in modules} if spelling.names is None else spelling.names(modules)
        for name, own in table.items():
            if name.endswith(facts.excluded) or not {piece.module for piece in own} <= set(modules):
                continue
            spelled = spelling.prefix + name.replace(".", spelling.separator)
            known = targets.get(spelled)
            if known is not None and known.pieces != own:
                raise ValueError(f"two spellings of {model_id} give {spelled!r} to {known.pieces} and {own}")
            target = known or Target(spelling.part, name, own, frozenset())
            targets[spelled] = replace(target, spellings=target.spellings | {index})
    return Names(targets, shapes)


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in source.tensor_infos().items() if name.endswith((".weight", ".bias"))}
