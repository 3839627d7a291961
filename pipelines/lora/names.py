"""Every name that a LoRA file may give to a layer of a model, looked up whole.

Trainers write the steps of a name with dots or with underscores, and converters with both, as in
``double_blocks.0.img_attn_qkv``. Underscores cannot be taken apart, so names are compared with every dot made an
underscore. What tools put in front, such as ``base_model.model.`` or ``lora_unet_``, is taken off, however often.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ..weights.pieces import Piece

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint
    from ..weights.source import Source

_SEPARATORS = re.compile(r"[._]+")
# the longest first
_WRAPPERS = tuple(
    f"{wrapper}_"
    for wrapper in (
        "base_model_model", "model_diffusion_model", "diffusion_model", "base_model", "lora_transformer", "lora_unet",
        "lora_dit", "oft_transformer", "oft_unet", "transformer", "lycoris", "denoiser", "orig_mod", "module", "unet",
        "model", "lora", "pipe", "dit", "net", "oft",
    )
)  # fmt: skip
_MOST_WRAPPERS = 8
_LONGEST = 1000  # characters of a name; no model has one half as long
_TEXT_ENCODER = re.compile(r"(?:(?:lora|lycoris|oft)_)?(?:text_encoders?|te|clip|t5)\d*(?:_\d+)?_.")
# how ComfyUI and diffusers' older files name what a layer of attention holds -> its own name
_ALIASES = ((re.compile(r"_processor_(?=to_)"), "_"), (re.compile(r"_to_out$"), "_to_out_0"))
_LEAVES = ("weight", "bias", "scale")
# ends of names -> those of one layer in their place, as diffusers' fuse_qkv_projections makes it, and as a trainer of
# Qwen-Image and nunchaku call it. Models are trained so, and the files of LyCORIS and PEFT have its name
_FUSED = {
    ("to_q", "to_k", "to_v"): ("to_qkv",),
    ("add_q_proj", "add_k_proj", "add_v_proj"): ("to_added_qkv", "add_qkv_proj"),
}


@dataclass(frozen=True)
class Target:
    """What a name in a file stands for.

    Attributes:
        part: of the model.
        name: by the file's naming, without the prefix, dots between its steps.
        pieces: of the model's modules; their rows lie below each other in the file's one.
    """

    part: str
    name: str
    pieces: tuple[Piece, ...]


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
        targets: name with underscores between its steps -> what it stands for.
        unused: names of what releases and files hold and no forward reads.
        shapes: part -> parameter -> shape.
    """

    targets: Mapping[str, Target]
    unused: frozenset[str]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    def find(self, name: str) -> Target | None:
        """What a name as a file writes it stands for; None where it is none of this model's."""
        forms = list(_forms(name))
        for pattern, own in _ALIASES:
            forms += [pattern.sub(own, form) for form in forms if pattern.search(form)]
        return next((self.targets[form] for form in forms if form in self.targets), None)

    def is_unused(self, name: str) -> bool:
        """Whether a name is of something that the model does not use."""
        return any(form in self.unused for form in _forms(name))

    def parameter(self, part: str, module: str, leaf: str) -> str | None:
        """The full name of a module's parameter; None where it has no such one.

        The weight of some norms is called scale, and a parameter may stand alone, without a module.
        """
        names = (f"{module}.{leaf}", f"{module}.scale", module) if leaf == "weight" else (f"{module}.{leaf}",)
        return next((name for name in names if name in self.shapes[part]), None)

    def shape(self, part: str, module: str, leaf: str) -> tuple[int, ...] | None:
        """The shape of a module's parameter; None where it has no such one."""
        name = self.parameter(part, module, leaf)
        return None if name is None else self.shapes[part][name]

    def rows(self, target: Target, leaf: str) -> list[Rows] | None:
        """Those of each piece's ``leaf``; None where a module has none. Raises ValueError where they do not divide."""
        found: list[Rows] = []
        for piece in target.pieces:
            shape = self.shape(target.part, piece.module, leaf)
            if shape is None:
                return None
            first, last = piece.rows(shape[0])
            start = found[-1].held[1] if found else 0
            found.append(Rows((start, start + last - first), None if piece.whole else (first, last)))
        return found


def names_text_encoder(name: str) -> bool:
    """Whether a file's name is that of a text encoder's layer, by what stands in front of it."""
    return any(_TEXT_ENCODER.match(form) for form in _forms(name))


def names_of(model_id: str, checkpoint: Checkpoint) -> Names:
    """The names for the weights of a checkpoint, from its files' headers."""
    return _names(model_id, checkpoint)


def plain(name: str) -> str:
    """A name with one underscore between its steps."""
    return _SEPARATORS.sub("_", name).strip("_")


def _forms(name: str) -> Iterator[str]:
    """A name as it is compared: whole, then with what stands in front taken off, once, twice, ..."""
    if len(name) > _LONGEST:
        return
    form = plain(name)
    yield form
    for _ in range(_MOST_WRAPPERS):
        wrapper = next((wrapper for wrapper in _WRAPPERS if form.startswith(wrapper)), None)
        if wrapper is None:
            return
        form = form.removeprefix(wrapper)
        yield form


@lru_cache(maxsize=8)
def _names(model_id: str, checkpoint: Checkpoint) -> Names:
    from ..models import find_model

    facts = find_model(model_id).lora
    shapes = {part: _shapes(checkpoint.source(part)) for part in dict.fromkeys(s.part for s in facts.spellings)}
    targets: dict[str, Target] = {}
    for spelling in facts.spellings:
        modules = list(dict.fromkeys(_module(name) for name in shapes[spelling.part]))
        table = {module: (Piece(module),) for module in modules} if spelling.names is None else spelling.names(modules)
        for name, own in (*table.items(), *_fused(table)):
            if name.endswith(facts.excluded) or not {piece.module for piece in own} <= set(modules):
                continue
            spelled = plain(spelling.prefix + name)
            known = targets.setdefault(spelled, Target(spelling.part, name, own))
            if known.pieces != own:
                raise ValueError(f"two spellings of {model_id} give {spelled!r} to {known.pieces} and {own}")
    unused = {plain(spelling.prefix + name) for spelling in facts.spellings for name in facts.unused}
    return Names(targets, frozenset(unused - targets.keys()), shapes)


def _fused(table: Mapping[str, tuple[Piece, ...]]) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """The layers that tools make of several of a naming, whose rows lie below each other there."""
    for ends, names in _FUSED.items():
        for module in table:
            owner, dot, end = module.rpartition(".")
            apart = [f"{owner}{dot}{own}" for own in ends]
            if end == ends[0] and all(own in table for own in apart):
                pieces = tuple(piece for own in apart for piece in table[own])
                yield from ((f"{owner}{dot}{name}", _joined(pieces)) for name in names)


def _joined(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """One piece for all of a module's shares in their order."""
    module, (_, count) = pieces[0].module, pieces[0].share
    return (Piece(module),) if pieces == tuple(Piece(module, (index, count)) for index in range(count)) else pieces


def _module(parameter: str) -> str:
    """The module of a parameter; one that stands alone is its own."""
    module, _, leaf = parameter.rpartition(".")
    return module if leaf in _LEAVES else parameter


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in source.tensor_infos().items()}
