"""One layer of a LoRA file: what kind of change its tensors are, and which rows of which parameter they change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from ..errors import LoraError
from ..words import shown
from . import families
from .kinds import KINDS, Kind, Shape, full_rank, ia3

if TYPE_CHECKING:
    from ..files.header import Header
    from .names import Names, Target

_FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_WHOLE = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
DAMAGED = "Export or download the file again."
# roles that go with those of several ways to change a weight
_SHARED = ("alpha", "dora_scale")
# roles of one value, which need not be a float
_MARKS = ("alpha", "ia3_on_input", "oftv2_scaled")


class Held(NamedTuple):
    """A piece of what one name of a file changes, where the model holds that in several.

    Attributes:
        module: whose weight it is.
        into: first row and the one after the last of that weight; None is all of it.
    """

    module: str
    into: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """One change of a file to one parameter; told from others by identity.

    Attributes:
        part: of the model.
        name: of the layer in the file, without prefix and suffix.
        parameter: its name in the model.
        rows: first row and the one after the last in what the file holds; None is all of it.
        into: first row and the one after the last of the parameter that it changes; None is all of it.
        keys: role -> key in the file.
        kind: what sort of change.
        rank: read from the tensors: files mix ranks; None where the kind has none.
        shape: of what it changes.
        alpha: told beside the tensors; None where it is not.
        whole: all pieces of what the file changes, in its order, where the change of each depends on all their weights.
    """

    part: str
    name: str
    parameter: str
    rows: tuple[int, int] | None
    into: tuple[int, int] | None
    keys: Mapping[str, str]
    kind: Kind
    rank: int | None
    shape: tuple[int, ...]
    alpha: float | None = None
    whole: tuple[Held, ...] = ()

    @property
    def module(self) -> str:
        """Whose parameter it is; empty for one that stands alone."""
        return self.parameter.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """``weight``, ``bias``, ``scale`` of some norms, or the name of a parameter that stands alone."""
        return self.parameter.rpartition(".")[2]

    @property
    def in_place(self) -> bool:
        """Whether it is always merged: what is no layer's matrix takes no branch, and is never held quantised."""
        return self.leaf != "weight" or len(self.shape) == 1

    @property
    def decomposed(self) -> bool:
        """Whether it comes with LyCORIS' ``dora_scale``."""
        return "dora_scale" in self.keys


@dataclass(frozen=True)
class Reading:
    """A file that is read for a model.

    Attributes:
        header: of the file.
        name: how messages call the file.
        title: how messages call the model.
        names: of the model's layers.
    """

    header: Header
    name: str
    title: str
    names: Names

    def origin(self) -> str:
        """Where a file comes from that fits in part: some models share names."""
        trained = families.trained_on(self.header.metadata)
        if trained is not None and trained != self.title:
            return f"Its metadata says that it was trained on {trained}."
        family = families.recognise(self.header, {})
        # Z-Image, Turbo and De-Turbo are one layout
        if family is None or self.title.startswith(family) or self.title in family:
            return "Was it trained on another version or size of the model?"
        return f"It looks like one for {family}."


def layers_of(reading: Reading, spelled: str, target: Target, leaf: str, roles: Mapping[str, str]) -> list[LoraLayer]:
    """What one name of a file changes; of each way to change a weight, and each of the target's pieces, one layer.

    Args:
        reading: the file and the model.
        spelled: the name in the file.
        target: what it stands for.
        leaf: ``weight`` or ``bias``.
        roles: role -> key.

    Raises:
        LoraError: parts are missing, or shapes do not fit.
    """
    layers: list[LoraLayer] = []
    for own in _ways(reading.name, spelled, roles):
        layers += _layers_of_one(reading, spelled, target, leaf, own)
        # PEFT multiplies what the layer gives, of which the bias is a part
        by_rows = "ia3_l" in own and ia3.by_rows(reading.header.tensors[own["ia3_l"]].shape)
        if by_rows and reading.names.rows(target, "bias") is not None:
            layers += _layers_of_one(reading, spelled, target, "bias", own)
    return layers


def check_overlap(layers: Iterable[LoraLayer], name: str) -> None:
    """A file may change rows in several ways, which add up, but none twice in one way: which counts is not known.

    What depends on the weight adds up with nothing: which comes first is not known.

    Raises:
        LoraError: it does.
    """
    layers = list(layers)
    alone = {(layer.part, layer.parameter) for layer in layers if layer.kind.of_weight or layer.decomposed}
    places: dict[tuple[str, str, str], list[LoraLayer]] = {}
    for layer in layers:
        way = "" if (layer.part, layer.parameter) in alone else _way(next(iter(layer.keys)))
        places.setdefault((layer.part, layer.parameter, way), []).append(layer)
    for found in places.values():
        spans = [(layer.into or (0, layer.shape[0]), layer) for layer in found]
        for ((_, end), upper), ((first, last), lower) in pairwise(sorted(spans, key=lambda span: span[0])):
            if first < end:
                where = f"rows {first} to {min(end, last) - 1} of {upper.parameter!r}"
                # one name behind two prefixes: only the keys differ
                by = (upper.name, lower.name)
                if upper.name == lower.name:
                    by = (next(iter(upper.keys.values())), next(iter(lower.keys.values())))
                raise LoraError(f"{name!r} changes {where} twice, by {shown(by[0])} and {shown(by[1])}. {DAMAGED}")


def _way(role: str) -> str:
    """The way to change a weight that a role belongs to."""
    return "lora" if role == "magnitude" else role.partition("_")[0]


def _ways(name: str, spelled: str, roles: Mapping[str, str]) -> list[dict[str, str]]:
    """The roles of each way; what several ways may have goes with each, a dora_scale with the one that it scales."""
    ways: dict[str, dict[str, str]] = {}
    for role, key in roles.items():
        if role not in _SHARED:
            ways.setdefault(_way(role), {})[role] = key
    if "dora_scale" in roles and len(ways) > 1:
        raise LoraError(f"{name!r} mixes formats: {shown(spelled)} has {', '.join(sorted(roles))}. {DAMAGED}")
    shared = {role: roles[role] for role in _SHARED if role in roles}
    return [own | shared for own in ways.values()] or [shared]


def _layers_of_one(
    reading: Reading, spelled: str, target: Target, leaf: str, roles: Mapping[str, str]
) -> list[LoraLayer]:
    name, names = reading.name, reading.names
    misfit = f"{name!r} does not fit these weights of {reading.title}: {shown(spelled)}"
    try:
        rows = names.rows(target, leaf)
    except ValueError as error:
        raise LoraError(f"{misfit} is a share of a layer, and {error}. {reading.origin()}") from error
    if rows is None:
        raise LoraError(f"{misfit} has no {leaf} in the model.")
    kind = _kind_of(name, spelled, roles)
    tail = (names.shape(target.part, target.pieces[0].module, leaf) or ())[1:]
    whole = (rows[-1].held[1], *tail)
    shape = _shape(reading, kind, spelled, roles, whole)
    if not _fits(shape.weight, whole):
        # as wide as the layer: half of a LoRA, which alone reads as AI Toolkit's full rank
        if kind is full_rank.KIND and shape.weight[1:] == whole[1:]:
            raise LoraError(f"{name!r} is damaged: {shown(spelled)} lacks lora_B. {DAMAGED}")
        raise LoraError(
            f"{misfit} is {list(whole)} in the model, and the file's tensors make {list(shape.weight)}. "
            + reading.origin()
        )
    split = len(rows) > 1
    by_rows = "dora_scale" not in roles or reading.header.tensors[roles["dora_scale"]].shape[:1] == (whole[0],)
    if not by_rows and len(whole) > 2:
        raise LoraError(
            f"{name!r} cannot be applied: dora_scale of {shown(spelled)} is by columns, and the layer is a convolution."
            " Train with weight decomposition on the output (wd_on_out), LyCORIS' default."
        )
    if shape.blocks and not {end for own in rows for end in own.held} <= {0, *accumulate(shape.blocks)}:
        raise LoraError(
            f"{name!r} cannot be applied: {kind.title} of {shown(spelled)} turns blocks of up to {max(shape.blocks)} "
            f"rows, and this model holds the layer in {len(rows)} pieces, which cut them. Train with blocks that divide"
            " the pieces, or on the split layers."
        )
    pieces = tuple(Held(piece.module, into) for piece, (_, into) in zip(target.pieces, rows, strict=True))
    # the length of a column is that of all its pieces
    together = pieces if split and not by_rows else ()
    return [
        LoraLayer(
            target.part, target.name, names.parameter(target.part, piece.module, leaf) or "", held if split else None,
            into, roles, kind, shape.rank, (held[1] - held[0], *tail), whole=together,
        )
        for piece, (held, into) in zip(target.pieces, rows, strict=True)
    ]  # fmt: skip


def _fits(held: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a change of one shape is one of a parameter of another.

    A matrix fits a convolution with its kernel's axes in one, and a kernel of one value a linear layer.
    """
    if len(held) == 2 < len(whole):
        return held == (whole[0], math.prod(whole[1:]))
    return held == whole or (len(whole) == 2 < len(held) and held[:2] == whole and set(held[2:]) == {1})


def _kind_of(name: str, spelled: str, roles: Mapping[str, str]) -> Kind:
    """The kind whose roles these are; an incomplete layer is the error of the kind that fits best."""
    own = roles.keys() - set(_SHARED)
    fitting = [kind for kind in KINDS if roles.keys() - {"dora_scale"} <= kind.roles]
    fitting = [kind for kind in fitting if own & set().union(*kind.complete)]
    if "dora_scale" in roles:
        fitting = [kind for kind in fitting if kind.decomposable] or fitting
    for kind in fitting:
        if own in kind.complete:
            if "dora_scale" in roles and not kind.decomposable:
                raise LoraError(
                    f"{name!r} mixes formats: {shown(spelled)} is {kind.title} with a dora_scale. {DAMAGED}"
                )
            return kind
    if not own:
        raise LoraError(f"{name!r} is damaged: {shown(spelled)} has only {', '.join(sorted(roles))}. {DAMAGED}")
    if not fitting:
        raise LoraError(f"{name!r} mixes formats: {shown(spelled)} has {', '.join(sorted(roles))}. {DAMAGED}")
    nearest = max((whole for kind in fitting for whole in kind.complete), key=lambda whole: len(whole & own))
    lacks, surplus = sorted(nearest - own), sorted(own - nearest)
    what = f"lacks {', '.join(lacks)}" if lacks else f"has {', '.join(surplus)} beside a whole layer"
    raise LoraError(f"{name!r} is damaged: {shown(spelled)} {what}. {DAMAGED}")


def _shape(reading: Reading, kind: Kind, spelled: str, roles: Mapping[str, str], whole: tuple[int, ...]) -> Shape:
    name = reading.name
    infos = {role: reading.header.tensors[key] for role, key in roles.items()}
    for role, info in infos.items():
        # kohya's network makes a whole number of an alpha that was not given
        if info.dtype not in _FLOATS and not (role in _MARKS and info.dtype in _WHOLE):
            raise LoraError(
                f"{name!r}: {shown(roles[role])} is {info.dtype}; a LoRA is F32, BF16 or F16, or float8. {DAMAGED}"
            )
        if role in _MARKS and math.prod(info.shape) != 1:
            raise LoraError(f"{name!r} is damaged: {shown(roles[role])} has shape {list(info.shape)}, not one value.")
    try:
        shape = kind.shape(infos, whole)
        if "dora_scale" in infos:
            rows, *tail = shape.weight
            scales = infos["dora_scale"].shape
            by_rows = scales[:1] == (rows,) and set(scales[1:]) <= {1}
            if not by_rows and (len(tail) != 1 or scales != (1, *tail)):
                raise ValueError(f"dora_scale {list(infos['dora_scale'].shape)} does not fit {list(shape.weight)}")
    except ValueError as error:
        raise LoraError(f"{name!r} is damaged: {shown(spelled)}: {error}. {DAMAGED}") from error
    return shape
