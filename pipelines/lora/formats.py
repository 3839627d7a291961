"""What a LoRA file holds, read from its header alone.

A key is a name and a suffix. Names come from the model's spellings (``names.py``), suffixes from the tables of the
kinds; nothing is renamed by replacing strings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from ..errors import LoraError
from . import families
from .kinds import DECOMPOSED, KINDS, Kind, Shape, full_rank

if TYPE_CHECKING:
    from ..files.header import Header
    from .names import Names, Target

_SUFFIXES = {suffix: role for kind in KINDS for suffix, role in kind.suffixes.items()} | DECOMPOSED
# the longest first: .lora_A.default.weight ends in nothing shorter, but others may
_BY_LENGTH = sorted(_SUFFIXES, key=len, reverse=True)
# suffix -> what it belongs to, for what is recognised but not applied
_OTHER = {
    ".lokr_t2": "LoKr for convolutions (Tucker)",
    ".hada_t1": "LoHa for convolutions (Tucker)",
    ".hada_t2": "LoHa for convolutions (Tucker)",
    ".lora_mid.weight": "LoRA for convolutions (Tucker)",
    ".w_norm": "LyCORIS norm", ".b_norm": "LyCORIS norm",
    ".set_weight": "whole weights", ".reshape_weight": "a LoRA that changes shapes",
    ".a1.weight": "GLoRA", ".oft_blocks": "OFT", ".oft_diag": "OFT", ".on_input": "IA3",
}  # fmt: skip
_ADAPTER_NAME = re.compile(r"\.(lora_A|lora_B)\.\w+\.weight$")
_FLOATS = ("F16", "BF16", "F32", "F64")
_WHOLE = ("I64", "I32", "I16", "I8", "U8")
_MOST_BLOCKS = 12  # lines of an error that list blocks
_DAMAGED = "Export or download the file again."


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """One change of a file to one parameter; told from others by identity.

    Attributes:
        part: of the model.
        name: of the layer in the file, without prefix and suffix.
        module: in the model.
        leaf: ``weight`` or ``bias``.
        rows: first row and the one after the last in what the file holds; None is all of it.
        into: first row and the one after the last of the parameter that it changes; None is all of it.
        keys: role -> key in the file.
        kind: what sort of change.
        rank: read from the tensors: files mix ranks; None where the kind has none.
        shape: of what it changes.
        alpha: told beside the tensors; None where it is not.
    """

    part: str
    name: str
    module: str
    leaf: str
    rows: tuple[int, int] | None
    into: tuple[int, int] | None
    keys: Mapping[str, str]
    kind: Kind
    rank: int | None
    shape: tuple[int, ...]
    alpha: float | None = None

    @property
    def parameter(self) -> str:
        """Its name in the model."""
        return f"{self.module}.{self.leaf}"

    @property
    def decomposed(self) -> bool:
        """Whether it comes with LyCORIS' ``dora_scale``."""
        return "dora_scale" in self.keys


def recognise(header: Header, name: str, title: str, names: Names) -> list[LoraLayer]:
    """The layers of a file.

    Args:
        header: of the file.
        name: how messages call the file.
        title: how messages call the model.
        names: of the model's layers.

    Raises:
        LoraError: no LoRA; of another model; of a format that is not applied; parts missing; wrong shapes; formats or
            namings mixed.
    """
    if not header.tensors:
        raise LoraError(f"{name!r} holds no tensors.")
    groups, strange = _groups(header, name)
    known = [spelled for spelled, _ in groups if spelled in names.targets]
    if not known and not any(_without_suffix(key) in names.targets for key in strange):
        family = families.recognise(header.tensors, header.metadata)
        looks = f"It looks like one for {family}." if family else f"Its first key is {next(iter(header.tensors))!r}."
        count = len(header.tensors)
        raise LoraError(
            f"{name!r} is no LoRA for {title}: none of its {count} keys names a layer of it. {looks} "
            f"Choose a LoRA that was trained on {title}."
        )
    if strange:
        raise LoraError(_strange_message(name, strange, len(header.tensors)))
    _check_names(header, groups, names, name, title)
    layers: dict[str, list[LoraLayer]] = {}
    for (spelled, leaf), roles in groups.items():
        target = names.targets[spelled]
        for layer in _layers(header, name, title, spelled, target, leaf, roles, names):
            layers.setdefault(f"{layer.part} {layer.parameter}", []).append(layer)
    _check_kinds(layers, name)
    for found in layers.values():
        _check_overlap(found, name)
    return list(chain.from_iterable(layers.values()))


def _groups(header: Header, name: str) -> tuple[dict[tuple[str, str], dict[str, str]], list[str]]:
    """(name as spelled, leaf) -> role -> key; and the keys of no known suffix."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    strange: list[str] = []
    for key in header.tensors:
        suffix = next((suffix for suffix in _BY_LENGTH if key.endswith(suffix)), "")
        if not suffix:
            # PEFT puts the adapter's name in
            named = _ADAPTER_NAME.search(key)
            if named is None:
                strange.append(key)
                continue
            suffix, role = named[0], named[1]
        else:
            role = _SUFFIXES[suffix]
        roles = groups.setdefault((key[: len(key) - len(suffix)], "bias" if role == "diff_b" else "weight"), {})
        if role in roles:
            raise LoraError(f"{name!r} is damaged: it has both {roles[role]!r} and {key!r}, which mean one. {_DAMAGED}")
        roles[role] = key
    return groups, strange


def _without_suffix(key: str) -> str:
    end = next((suffix for suffix in _OTHER if key.endswith(suffix)), "")
    return key.removesuffix(end) if end else key.rpartition(".")[0]


def _strange_message(name: str, strange: list[str], total: int) -> str:
    kinds = {kind for key in strange for suffix, kind in _OTHER.items() if key.endswith(suffix)}
    some = ", ".join(repr(key) for key in strange[:4]) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
    applied = f"This pack applies {', '.join(kind.title for kind in KINDS)}."
    if kinds:
        return (
            f"{name!r} holds {' / '.join(sorted(kinds))}, which is not applied. {applied} Keys that cannot be applied: "
            f"{some}."
        )
    return f"{name!r} has {len(strange)} of {total} keys that are of no known kind: {some}. {applied}"


def _check_names(header: Header, groups: Mapping[tuple[str, str], object], names: Names, name: str, title: str) -> None:
    spelled = list(dict.fromkeys(spelled for spelled, _ in groups))
    unmatched = [one for one in spelled if one not in names.targets]
    if unmatched:
        blocks = Counter(_block(one) for one in unmatched)
        lines = [
            f"  {block}: {count} layer{'' if count == 1 else 's'}"
            for block, count in list(blocks.items())[:_MOST_BLOCKS]
        ]
        if len(blocks) > _MOST_BLOCKS:
            lines.append(f"  and {len(blocks) - _MOST_BLOCKS} more blocks")
        raise LoraError(
            f"{name!r} does not fit these weights of {title}: {len(unmatched)} of its {len(spelled)} layers are not in "
            f"the model, the first is {unmatched[0]!r}. {_origin(header, title)}\n" + "\n".join(lines)
        )
    common: dict[str, frozenset[int]] = {}
    first: dict[str, str] = {}
    for one in spelled:
        target = names.targets[one]
        both = common.get(target.part, target.spellings) & target.spellings
        if not both:
            raise LoraError(
                f"{name!r} mixes formats: it names layers in two ways, as in {first[target.part]!r} and {one!r}. "
                + _DAMAGED
            )
        common[target.part] = both
        first.setdefault(target.part, one)


def _origin(header: Header, title: str) -> str:
    """Where a file comes from that fits in part: some models share names."""
    trained = families.trained_on(header.metadata)
    if trained is not None and trained != title:
        return f"Its metadata says that it was trained on {trained}."
    family = families.recognise(header.tensors, {})
    if family is None or family.startswith(title) or title.startswith(family.split()[0]):
        return "Was it trained on another version or size of the model?"
    return f"It looks like one for {family}."


def _block(spelled: str) -> str:
    """``layers.30.attn.to_q`` -> ``layers.30``; a name without a number stays as it is."""
    match = re.search(r"[._]\d+(?=[._]|$)", spelled)
    return spelled[: match.end()] if match else spelled


def _layers(
    header: Header, name: str, title: str, spelled: str, target: Target, leaf: str, roles: Mapping[str, str],
    names: Names,
) -> list[LoraLayer]:  # fmt: skip
    try:
        rows = names.rows(target, leaf)
    except ValueError as error:
        raise LoraError(
            f"{name!r} does not fit these weights of {title}: {spelled!r} is a share of a layer, and {error}. "
            + _origin(header, title)
        ) from error
    if rows is None:
        raise LoraError(f"{name!r} does not fit these weights of {title}: {spelled!r} has no {leaf} in the model.")
    kind = _kind_of(name, spelled, roles)
    shape = _shape(header, name, kind, spelled, roles)
    shapes = names.shapes[target.part]
    tail = shapes[f"{target.pieces[0].module}.{leaf}"][1:]
    whole = (rows[-1].held[1], *tail)
    if shape.weight != whole:
        # as wide as the layer: half of a LoRA, which alone reads as AI Toolkit's full rank
        if kind is full_rank.KIND and shape.weight[1:] == whole[1:]:
            raise LoraError(f"{name!r} is damaged: {spelled!r} lacks lora_B. {_DAMAGED}")
        raise LoraError(
            f"{name!r} does not fit these weights of {title}: {spelled!r} is {list(whole)} in the model, and the "
            f"file's tensors make {list(shape.weight)}. {_origin(header, title)}"
        )
    split = len(rows) > 1
    if split and "dora_scale" in roles and header.tensors[roles["dora_scale"]].shape[:1] != (shape.weight[0],):
        raise LoraError(
            f"{name!r} cannot be applied: dora_scale of {spelled!r} is by columns, and this model holds the layer in "
            f"{len(rows)} pieces. Train with weight decomposition on the output (wd_on_out), LyCORIS' default."
        )
    return [
        LoraLayer(
            target.part, target.name, piece.module, leaf, held if split else None, into, roles, kind, shape.rank,
            (held[1] - held[0], *tail),
        )
        for piece, (held, into) in zip(target.pieces, rows, strict=True)
    ]  # fmt: skip


def _kind_of(name: str, spelled: str, roles: Mapping[str, str]) -> Kind:
    """The kind whose roles these are; an incomplete layer is the error of the kind that fits best."""
    own = roles.keys() - {"alpha", "dora_scale"}
    fitting = [kind for kind in KINDS if roles.keys() - {"dora_scale"} <= set(kind.suffixes.values())]
    fitting = [kind for kind in fitting if own & set().union(*kind.complete)]
    if "dora_scale" in roles:
        fitting = [kind for kind in fitting if kind.decomposable] or fitting
    for kind in fitting:
        if own in kind.complete:
            if "dora_scale" in roles and not kind.decomposable:
                raise LoraError(f"{name!r} mixes formats: {spelled!r} is {kind.title} with a dora_scale. {_DAMAGED}")
            return kind
    if not fitting:
        if not own:
            raise LoraError(f"{name!r} is damaged: {spelled!r} has only {', '.join(sorted(roles))}. {_DAMAGED}")
        raise LoraError(f"{name!r} mixes formats: {spelled!r} has {', '.join(sorted(roles))}. {_DAMAGED}")
    nearest = max((whole for kind in fitting for whole in kind.complete), key=lambda whole: len(whole & own))
    lacks, surplus = sorted(nearest - own), sorted(own - nearest)
    what = f"lacks {', '.join(lacks)}" if lacks else f"has {', '.join(surplus)} beside a whole layer"
    raise LoraError(f"{name!r} is damaged: {spelled!r} {what}. {_DAMAGED}")


def _shape(header: Header, name: str, kind: Kind, spelled: str, roles: Mapping[str, str]) -> Shape:
    infos = {role: header.tensors[key] for role, key in roles.items()}
    for role, info in infos.items():
        # kohya's network makes a whole number of an alpha that was not given
        if info.dtype not in _FLOATS and not (role == "alpha" and info.dtype in _WHOLE):
            raise LoraError(f"{name!r}: {roles[role]!r} is {info.dtype}; a LoRA is F32, BF16 or F16. {_DAMAGED}")
    if "alpha" in infos and math.prod(infos["alpha"].shape) != 1:
        raise LoraError(
            f"{name!r} is damaged: {roles['alpha']!r} has shape {list(infos['alpha'].shape)}, not one value."
        )
    try:
        shape = kind.shape(infos)
        if "dora_scale" in infos:
            rows, columns = shape.weight
            if infos["dora_scale"].shape not in ((rows,), (rows, 1), (1, columns)):
                raise ValueError(f"dora_scale {list(infos['dora_scale'].shape)} does not fit {[rows, columns]}")
    except ValueError as error:
        raise LoraError(f"{name!r} is damaged: {spelled!r}: {error}. {_DAMAGED}") from error
    return shape


def _check_kinds(layers: Mapping[str, list[LoraLayer]], name: str) -> None:
    """One kind for a whole file, but for plain differences, which tools add for biases and norms."""
    titles = {layer.kind.title for found in layers.values() for layer in found if not layer.kind.accompanies}
    if len(titles) > 1:
        raise LoraError(
            f"{name!r} mixes formats: some of its layers are {', others '.join(sorted(titles))}. {_DAMAGED}"
        )


def _check_overlap(layers: list[LoraLayer], name: str) -> None:
    """A file may change one parameter in several layers, but no row of it twice."""
    spans = [(layer.into or (0, layer.shape[0]), layer) for layer in layers]
    for ((_, end), upper), ((first, last), lower) in pairwise(sorted(spans, key=lambda span: span[0])):
        if first < end:
            where = f"rows {first} to {min(end, last) - 1} of {upper.parameter!r}"
            raise LoraError(f"{name!r} changes {where} twice, by {upper.name!r} and {lower.name!r}. {_DAMAGED}")
