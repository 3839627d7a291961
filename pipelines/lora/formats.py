"""What a LoRA file holds, read from its header alone.

A key is a prefix, a module and a suffix. Prefixes come from the model's facts, suffixes from the tables of the kinds;
nothing is renamed by replacing strings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import LoraError
from ..files.safetensors import Header
from . import families
from .kinds import KINDS, Kind

_SUFFIXES = {suffix: role for kind in KINDS for suffix, role in kind.suffixes.items()}
# suffix -> the format that it belongs to, for files that are recognised but not applied
_OTHER_FORMATS = {
    ".lokr_t2": "LoKr (Tucker)",
    ".hada_w1_a": "LoHa", ".hada_w1_b": "LoHa", ".hada_w2_a": "LoHa", ".hada_w2_b": "LoHa",
    ".dora_scale": "DoRA (dora_scale)", ".lora_magnitude_vector": "DoRA (PEFT)",
    ".diff": "full difference", ".diff_b": "full difference",
}  # fmt: skip
_APPLIED = "This version applies LoRA, LoKr, DoRA and full-rank files with the names of diffusers' modules."
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class LoraLayer:
    """One layer of a file.

    Attributes:
        module: name in the model.
        keys: role -> key in the file.
        rank: read from the tensors: files mix ranks; None where the kind has none.
        shape: (out, in) of the weight that it changes.
    """

    module: str
    keys: Mapping[str, str]
    rank: int | None
    shape: tuple[int, int]


def recognise(
    header: Header, name: str, title: str, prefixes: tuple[str, ...], modules: Collection[str]
) -> tuple[Kind, list[LoraLayer]]:
    """The kind of a file, and its layers.

    Args:
        header: of the file.
        name: how messages call the file.
        title: how messages call the model.
        prefixes: what may stand before a module's name.
        modules: the model's layers; where no key names one, the file is for something else.

    Raises:
        LoraError: no LoRA; of another model; of a format that is not applied; parts missing; wrong shapes.
    """
    if not header.tensors:
        raise LoraError(f"{name!r} holds no tensors.")
    keys = list(header.tensors)
    if not any(key.startswith(prefixes) and _module_of(key, prefixes) in modules for key in keys):
        family = families.recognise(keys, header.metadata)
        looks = f"It looks like one for {family}." if family else f"Its first key is {keys[0]!r}."
        raise LoraError(f"{name!r} is no LoRA for {title}: none of its {len(keys)} keys names a layer of it. {looks}")
    parts: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for key in keys:
        split = _split(key, prefixes)
        if split is None:
            strange.append(key)
        else:
            module, role = split
            if role in parts.setdefault(module, {}):
                raise LoraError(f"{name!r} names the {role} of {module!r} twice.")
            parts[module][role] = key
    if strange:
        raise LoraError(_strange_message(name, strange, len(keys)))
    kind = _kind_of(name, parts)
    return kind, [_layer(header, name, kind, module, roles) for module, roles in parts.items()]


def _module_of(key: str, prefixes: tuple[str, ...]) -> str:
    """The module that a key seems to name, whatever follows it: ``layers.0.attn.to_q``."""
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    for suffix in (*_SUFFIXES, *_OTHER_FORMATS):
        if key.endswith(suffix):
            return key.removesuffix(suffix)
    return key


def _split(key: str, prefixes: tuple[str, ...]) -> tuple[str, str] | None:
    for prefix in prefixes:
        for suffix, role in _SUFFIXES.items():
            if key.startswith(prefix) and key.endswith(suffix):
                return key[len(prefix) : len(key) - len(suffix)], role
    return None


def _strange_message(name: str, strange: list[str], total: int) -> str:
    kinds = {kind for key in strange for suffix, kind in _OTHER_FORMATS.items() if key.endswith(suffix)}
    some = ", ".join(repr(key) for key in strange[:4]) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
    if kinds:
        return f"{name!r} is a {' / '.join(sorted(kinds))} file. {_APPLIED} Keys that cannot be applied: {some}."
    return f"{name!r} has {len(strange)} of {total} keys that are of no known kind: {some}."


def _kind_of(name: str, parts: Mapping[str, Mapping[str, str]]) -> Kind:
    """The one kind whose roles all layers have; an incomplete layer is the error of the kind that fits best."""
    used = {role for roles in parts.values() for role in roles}
    fitting = [kind for kind in KINDS if used <= set(kind.suffixes.values()) and used & set().union(*kind.complete)]
    for kind in fitting:
        if all(roles.keys() - {"alpha"} in kind.complete for roles in parts.values()):
            return kind
    if not fitting:
        raise LoraError(f"{name!r} mixes formats: its layers have {', '.join(sorted(used))}. Export the file again.")
    kind = fitting[0]
    module, roles = next((m, r) for m, r in parts.items() if r.keys() - {"alpha"} not in kind.complete)
    nearest = max(kind.complete, key=lambda whole: len(whole & roles.keys()))
    missing, surplus = sorted(nearest - roles.keys()), sorted(roles.keys() - nearest - {"alpha"})
    what = f"has no {' and no '.join(missing)}" if missing else f"has {' and '.join(surplus)} beside a whole layer"
    raise LoraError(f"{name!r} is damaged: {module!r} {what}. Export or download the file again.")


def _layer(header: Header, name: str, kind: Kind, module: str, roles: Mapping[str, str]) -> LoraLayer:
    infos = {role: header.tensors[key] for role, key in roles.items()}
    for role, info in infos.items():
        if info.dtype not in _FLOATS:
            raise LoraError(f"{name!r}: {roles[role]!r} is {info.dtype}; a LoRA is F32, BF16 or F16.")
    if "alpha" in infos and infos["alpha"].shape not in ((), (1,)):
        raise LoraError(
            f"{name!r} is damaged: {roles['alpha']!r} has shape {list(infos['alpha'].shape)}, not one value."
        )
    try:
        shape = kind.shape(infos)
    except ValueError as error:
        raise LoraError(f"{name!r} is damaged: {module!r}: {error}. Export or download the file again.") from error
    return LoraLayer(module, roles, shape.rank, shape.weight)
