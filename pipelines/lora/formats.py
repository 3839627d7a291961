"""What a LoRA file holds, read from its header alone.

Each key is understood by itself: its end tells the role (``keys.py``), the rest is looked up among the model's names
(``names.py``). A file may mix spellings and kinds. What changes nothing of the model is skipped and told; what would
change something, and is not understood, refuses the file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import LoraError
from ..words import shown
from . import families
from .keys import take_apart
from .kinds import KINDS
from .layers import DAMAGED, LoraLayer, Reading, check_overlap, layers_of
from .names import names_text_encoder

if TYPE_CHECKING:
    from ..files.header import Header
    from .names import Names

_MOST_BLOCKS = 12  # lines of an error that list blocks
_MOST_NOTES = 8  # lines on what was skipped
# what no network has, and what only tells of matrices that tell it themselves
_NO_CHANGES = {
    "it is an embedding of a prompt's word, and no layer": re.compile(r"bundle_emb\."),
    "the tensors tell it": re.compile(r".*\.(?:rank|dim|lora_dim|lora_rank)$"),
}
_STEPS = 3  # how many steps from the end of a key of no known kind may be its end

# (name as spelled, leaf) -> role -> key
Groups = dict[tuple[str, str], dict[str, str]]


@dataclass(frozen=True)
class Contents:
    """What a file holds for a model.

    Attributes:
        layers: what it changes, in the file's order.
        notes: what was skipped, and why; a sentence each.
    """

    layers: list[LoraLayer]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Odd:
    """A key that is no role of a kind that is applied."""

    key: str
    name: str
    unapplied: str


class _Skipped:
    """Counts what is left out, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, keys: Iterable[str], why: str) -> None:
        self._found.setdefault(why, []).extend(keys)

    def notes(self) -> tuple[str, ...]:
        lines = [
            f"skipped {len(keys)} key{'' if len(keys) == 1 else 's'}, as {shown(keys[0])}: {why}"
            for why, keys in self._found.items()
        ]
        more = len(lines) - _MOST_NOTES
        return (*lines[:_MOST_NOTES], *([f"skipped keys for {more} more reasons"] if more > 0 else []))


def recognise(header: Header, name: str, title: str, names: Names) -> Contents:
    """The layers of a file.

    Args:
        header: of the file.
        name: how messages call the file.
        title: how messages call the model.
        names: of the model's layers.

    Raises:
        LoraError: no LoRA; of another model; of a format that is not applied; parts missing; wrong shapes; one thing
            changed twice.
    """
    if not header.tensors:
        raise LoraError(f"{name!r} holds no tensors.")
    reading, skipped = Reading(header, name, title, names), _Skipped()
    groups, odd = _groups(header, name)
    _drop_unused(groups, odd, names, skipped)
    _drop_empty(header, groups, odd, skipped)
    targets = {spelled: target for spelled, _ in groups if (target := names.find(spelled)) is not None}
    _check_kinds(reading, odd)
    if not targets:
        _raise_foreign(reading, groups, odd, skipped)
    _check_odd(reading, odd, skipped)
    _check_names(reading, [spelled for spelled, _ in groups if spelled not in targets])
    layers: list[LoraLayer] = []
    for (spelled, leaf), roles in groups.items():
        layers += layers_of(reading, spelled, targets[spelled], leaf, roles)
    check_overlap(layers, name)
    return Contents(layers, skipped.notes())


def _groups(header: Header, name: str) -> tuple[Groups, list[_Odd]]:
    groups: Groups = {}
    odd: list[_Odd] = []
    for key in header.tensors:
        spelled, role, unapplied = take_apart(key)
        if not role and key.removesuffix(".weight") + ".on_input" in header.tensors:
            # a weight is IA3's where that stands beside it, and elsewhere no change at all
            spelled, role = key.removesuffix(".weight"), "ia3_weight"
        if not role:
            odd.append(_Odd(key, spelled, unapplied))
            continue
        roles = groups.setdefault((spelled, "bias" if role == "diff_b" else "weight"), {})
        if role in roles:
            raise LoraError(
                f"{name!r} is damaged: it has both {shown(roles[role])} and {shown(key)}, which mean one. {DAMAGED}"
            )
        roles[role] = key
    return groups, odd


def _drop_unused(groups: Groups, odd: list[_Odd], names: Names, skipped: _Skipped) -> None:
    """Takes out what names things that the model does not use."""
    why = "the model does not use it"
    for spelled, leaf in list(groups):
        if names.is_unused(spelled):
            skipped.add(groups.pop((spelled, leaf)).values(), why)
    unused = [one for one in odd if any(names.is_unused(start) for start in _starts(one))]
    if unused:
        skipped.add([one.key for one in unused], why)
        left = {one.key for one in unused}
        odd[:] = [one for one in odd if one.key not in left]


def _drop_empty(header: Header, groups: Groups, odd: list[_Odd], skipped: _Skipped) -> None:
    """Takes out matrices of rank 0, as AdaLoRA leaves them, scales of nothing, and keys that tell of others."""
    for place, roles in list(groups.items()):
        shapes = [header.tensors[key].shape for role, key in roles.items() if role != "alpha"]
        if shapes and all(0 in shape for shape in shapes):
            skipped.add(groups.pop(place).values(), "it is empty")
    lone = [place for place, roles in groups.items() if roles.keys() == {"alpha"}]
    if len(lone) < len(groups):
        keys = [groups.pop(place)["alpha"] for place in lone]
        if keys:
            skipped.add(keys, "an alpha without matrices changes nothing")
    for why, pattern in _NO_CHANGES.items():
        found = dict.fromkeys(one.key for one in odd if not one.unapplied and pattern.match(one.key))
        if found:
            skipped.add(found, why)
            odd[:] = [one for one in odd if one.key not in found]


def _starts(odd: _Odd) -> Iterable[str]:
    """What may be the name in an odd key: how much of it is the end is not known."""
    yield odd.name
    if not odd.unapplied:
        steps = odd.name.rsplit(".", _STEPS)
        yield from (".".join(steps[:count]) for count in range(len(steps) - 1, 0, -1))


def _check_kinds(reading: Reading, odd: list[_Odd]) -> None:
    """Names kinds that are known and not applied, whatever model they are for."""
    unapplied = [one for one in odd if one.unapplied]
    if unapplied:
        kinds = " / ".join(sorted({one.unapplied for one in unapplied}))
        raise LoraError(
            f"{reading.name!r} holds {kinds}, which is not applied. {_applied()} Keys that cannot be applied: "
            f"{_some([one.key for one in unapplied])}."
        )


def _check_odd(reading: Reading, odd: list[_Odd], skipped: _Skipped, largest: float = 1) -> None:
    """Refuses keys of no known kind that name a layer of the model or have more values than ``largest``.

    What is left is a counter or a statistic of the training.
    """
    sizes = reading.header.tensors
    strange = [
        one.key
        for one in odd
        if math.prod(sizes[one.key].shape) > largest
        or any(reading.names.find(start) is not None for start in _starts(one))
    ]
    if strange:
        raise LoraError(
            f"{reading.name!r} has {len(strange)} of {len(reading.header.tensors)} keys that are of no known kind: "
            f"{_some(strange)}. {_applied()}"
        )
    if odd:
        skipped.add([one.key for one in odd], "it is no change of a layer")


def _applied() -> str:
    return f"This pack applies {', '.join(kind.title for kind in KINDS)}."


def _some(keys: list[str]) -> str:
    return ", ".join(map(shown, keys[:4])) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _raise_foreign(reading: Reading, groups: Groups, odd: list[_Odd], skipped: _Skipped) -> None:
    """Says what a file is that names no layer of the model."""
    header, name, title = reading.header, reading.name, reading.title
    # a file for another model is called that, whatever else it holds
    _check_odd(reading, odd, skipped, largest=math.inf)
    if not groups and (notes := skipped.notes()):
        raise LoraError(f"{name!r} changes nothing of {title}: {'; '.join(notes)}.")
    _check_text_encoder(reading, [spelled for spelled, _ in groups])
    family = families.recognise(header, header.metadata)
    looks = f"It looks like one for {family}." if family else f"Its first key is {shown(next(iter(header.tensors)))}."
    raise LoraError(
        f"{name!r} is no LoRA for {title}: none of its {len(header.tensors)} keys names a layer of it. {looks} "
        f"Choose a LoRA that was trained on {title}."
    )


def _check_text_encoder(reading: Reading, unmatched: list[str]) -> None:
    """Names the half of a file that a model without LoRAs of its text encoder cannot have."""
    theirs = [one for one in unmatched if names_text_encoder(one)]
    if theirs and len(theirs) == len(unmatched) and "text_encoder" not in reading.names.shapes:
        raise LoraError(
            f"{reading.name!r} also changes the text encoder: {len(theirs)} layer{'' if len(theirs) == 1 else 's'}, as "
            f"{shown(theirs[0])}. Of a LoRA for {reading.title} the text encoder's half cannot be applied, and without "
            "it the pictures are not those of the training. Use a file that was trained on the transformer alone."
        )


def _check_names(reading: Reading, unmatched: list[str]) -> None:
    unmatched = list(dict.fromkeys(unmatched))
    if not unmatched:
        return
    _check_text_encoder(reading, unmatched)
    blocks = Counter(map(_block, unmatched))
    lines = [
        f"  {shown(block)[1:-1]}: {count} layer{'' if count == 1 else 's'}"
        for block, count in list(blocks.items())[:_MOST_BLOCKS]
    ]
    if len(blocks) > _MOST_BLOCKS:
        lines.append(f"  and {len(blocks) - _MOST_BLOCKS} more blocks")
    total = len({take_apart(key).name for key in reading.header.tensors})
    raise LoraError(
        f"{reading.name!r} does not fit these weights of {reading.title}: {len(unmatched)} of its {total} layers are "
        f"not in the model, the first is {shown(unmatched[0])}. {reading.origin()}\n" + "\n".join(lines)
    )


def _block(spelled: str) -> str:
    """``layers.30.attn.to_q`` -> ``layers.30``; a name without a number stays as it is."""
    match = re.search(r"[._]\d+(?=[._]|$)", spelled)
    return spelled[: match.end()] if match else spelled
