"""A LoRA file at a glance, for the editor: from its header alone, before anything runs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import AITKError
from ..files.header import FileStamp
from ..files.safetensors import read_header
from . import families
from .file import open_lora
from .info import step_in, trained_with, trigger_in
from .keys import take_apart
from .kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..files.header import Header, TensorInfo
    from ..models.facts import ModelFacts
    from ..weights.checkpoint import Checkpoint
    from .kinds import Kind

_MOST_RANKS = 4


@dataclass(frozen=True)
class Fit:
    """Whether a file fits a model.

    Attributes:
        verdict: ``maybe`` where the file does not tell, or tells of a model that shares the layers.
        words: why, a sentence.
    """

    verdict: Literal["yes", "no", "maybe"]
    words: str


@dataclass(frozen=True)
class Card:
    """What a file says of itself; empty or None where it says nothing.

    Attributes:
        size: bytes.
        format: kinds of its changes, for people.
        ranks: those that most layers have, first.
        trained_for: the model that its metadata or its layers name.
        trained_with: the program, with its version.
        step: of the training.
        trigger_word: see ``info.trigger_in``.
    """

    size: int
    format: str
    ranks: tuple[int, ...]
    trained_for: str
    trained_with: str
    step: int | None
    trigger_word: str


def read_card(path: Path) -> Card:
    """The card of a file; raises FileError where it is no safetensors file."""
    header = read_header(path)
    kinds, ranks = _contents(header)
    return Card(
        size=FileStamp.of(path).size,
        format=" and ".join(kind.title for kind in KINDS if kind in kinds),
        ranks=ranks,
        trained_for=families.trained_on(header.metadata) or families.recognise(header, {}) or "",
        trained_with=trained_with(header.metadata),
        step=step_in(header.metadata),
        trigger_word=trigger_in(header.metadata),
    )


def fit(path: Path, name: str, model: ModelFacts, checkpoint: Checkpoint | None) -> Fit:
    """Whether a file fits: as the run will find it where the weights are known, else as far as the file tells.

    Args:
        path, name: the file, and how messages call it.
        model: that is chosen.
        checkpoint: its weights; None where they are not on this computer's disk.

    Raises:
        FileError: it is no safetensors file.
    """
    header = read_header(path)
    trained = families.trained_on(header.metadata)
    # one name for several models tells nothing of which
    alike = header.metadata.get("ss_base_model_version") == (model.lora_base or model.id.partition(":")[0])
    other = "" if trained in (None, model.title) or alike else f"Its metadata says that it was trained on {trained}."
    if checkpoint is not None:
        try:
            open_lora(path, name, model, checkpoint)
        except AITKError as error:
            return Fit("no", str(error))
        return Fit("maybe", f"Its layers fit. {other}") if other else Fit("yes", f"Its layers are {model.title}'s.")
    family = families.recognise(header, {})
    if family is None:
        return Fit("maybe", other or "Its layers' names tell no model; the run will check them.")
    # Z-Image, Turbo and De-Turbo are one layout; some files tell several families
    if not any(model.title.startswith(one) for one in re.split(r", | or ", family)):
        return Fit("no", f"It looks like one for {family}.")
    if other or " or " in family:
        return Fit("maybe", other or f"It looks like one for {family}.")
    return Fit("yes", f"Its metadata says {trained}." if trained else f"It looks like one for {family}.")


def _contents(header: Header) -> tuple[set[Kind], tuple[int, ...]]:
    """The kinds of a file's layers, and their ranks, the most frequent first."""
    layers: dict[str, dict[str, TensorInfo]] = {}
    for key, info in header.tensors.items():
        taken = take_apart(key)
        if taken.role:
            layers.setdefault(taken.name, {})[taken.role] = info
    found: set[Kind] = set()
    ranks: Counter[int] = Counter()
    for roles in layers.values():
        whole = {kind: len(own) for kind in KINDS for own in kind.complete if own <= roles.keys()}
        if whole:
            # half of a LoRA reads as AI Toolkit's full rank: the kind that explains most counts
            kind = max(whole, key=lambda one: whole[one])
            found.add(kind)
            ranks.update(rank for rank in [_rank(kind, roles)] if rank)
    named = {kind for kind in found if not kind.accompanies}
    return named or found, tuple(rank for rank, _ in ranks.most_common(_MOST_RANKS))


def _rank(kind: Kind, roles: Mapping[str, TensorInfo]) -> int | None:
    try:
        return kind.shape({role: info for role, info in roles.items() if role in kind.roles}, ()).rank
    except (ValueError, IndexError, KeyError):
        # shapes that do not fit together: the run names them
        return None
