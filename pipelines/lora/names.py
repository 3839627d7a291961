"""Every name that a LoRA file may give to a layer of a model, looked up whole: underscores cannot be taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..sources.source import Source

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@dataclass(frozen=True)
class Target:
    """What a name in a file stands for.

    Attributes:
        part: ``transformer`` or ``text_encoder``.
        modules: the model's modules, whose rows lie below each other in the file's one.
        spellings: indices of the spellings that write it so.
    """

    part: str
    modules: tuple[str, ...]
    spellings: frozenset[int]


@dataclass(frozen=True)
class Names:
    """The names of one model's layers.

    Attributes:
        targets: name as a file writes it, without the suffix -> what it stands for.
        shapes: part -> parameter -> shape.
    """

    targets: Mapping[str, Target]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    def rows(self, target: Target, leaf: str) -> list[tuple[int, int]] | None:
        """First row and the one after the last of each module's ``leaf`` in the file's; None where one has none."""
        shapes = [self.shapes[target.part].get(f"{module}.{leaf}") for module in target.modules]
        found: list[tuple[int, int]] = []
        for shape in shapes:
            if shape is None:
                return None
            start = found[-1][1] if found else 0
            found.append((start, start + shape[0]))
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
        table = {module: (module,) for module in modules} if spelling.names is None else spelling.names(modules)
        for name, own in table.items():
            if name.endswith(facts.excluded) or not set(own) <= set(modules):
                continue
            spelled = spelling.prefix + name.replace(".", spelling.separator)
            known = targets.get(spelled)
            if known is not None and known.modules != own:
                raise ValueError(f"two spellings of {model_id} give {spelled!r} to {known.modules} and {own}")
            used = (known.spellings if known else frozenset()) | {index}
            targets[spelled] = Target(spelling.part, known.modules if known else own, used)
    return Names(targets, shapes)


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in source.tensor_infos().items() if name.endswith((".weight", ".bias"))}
