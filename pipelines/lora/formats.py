"""What a LoRA file holds, read from its header alone.

A key is a prefix, a module and a suffix. Prefixes come from the model's facts, suffixes from the table below; nothing
is renamed by replacing strings. Adding a format is adding rows and a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LoraError
from ..safetensors_file import Header
from . import families

# suffix -> role, for AI Toolkit's and PEFT's LoRA files
_ROLES = {".lora_A.weight": "down", ".lora_B.weight": "up", ".alpha": "alpha"}
# suffix -> the format that it belongs to, for files that are recognised but not applied
_OTHER_FORMATS = {
    ".lokr_w1": "LoKr", ".lokr_w1_a": "LoKr", ".lokr_w1_b": "LoKr",
    ".lokr_w2": "LoKr", ".lokr_w2_a": "LoKr", ".lokr_w2_b": "LoKr", ".lokr_t2": "LoKr",
    ".hada_w1_a": "LoHa", ".hada_w1_b": "LoHa", ".hada_w2_a": "LoHa", ".hada_w2_b": "LoHa",
    ".magnitude": "DoRA", ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA",
    ".diff": "full difference", ".diff_b": "full difference",
    ".lora_A.default.weight": "PEFT (with an adapter name)", ".lora_B.default.weight": "PEFT (with an adapter name)",
    ".lora_down.weight": "kohya (lora_down/lora_up)", ".lora_up.weight": "kohya (lora_down/lora_up)",
}  # fmt: skip
_APPLIED = "This version applies LoRA files with lora_A and lora_B, as AI Toolkit saves them by default."
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class LoraLayer:
    """One layer of a file.

    Attributes:
        module: name in the model.
        down: key of A, [rank, in].
        up: key of B, [out, rank].
        alpha: key of the scalar that is divided by this layer's rank; None means a scale of 1.
        rank: read from the tensors: files mix ranks.
        shape: (out, in) of the weight that it changes.
    """

    module: str
    down: str
    up: str
    alpha: str | None
    rank: int
    shape: tuple[int, int]


def recognise(header: Header, name: str, title: str, prefixes: tuple[str, ...], own_keys: bool) -> list[LoraLayer]:
    """The layers of a file.

    Args:
        header: of the file.
        name: how messages call the file.
        title: how messages call the model.
        prefixes: what may stand before a module's name.
        own_keys: whether some module name of the model occurs in the keys; decides which message a stray file gets.

    Raises:
        LoraError: no LoRA; of another model; of a format that is not applied; half a pair; wrong shapes.
    """
    if not header.tensors:
        raise LoraError(f"{name!r} holds no tensors.")
    keys = list(header.tensors)
    family = families.recognise(keys, header.metadata)
    if not own_keys:
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
                raise LoraError(f"{name!r} names the {role} tensor of {module!r} twice.")
            parts[module][role] = key
    if strange:
        raise LoraError(_strange_message(name, strange, len(keys)))
    if all(roles.keys() == {"down"} for roles in parts.values()):
        raise LoraError(f"{name!r} is a full-rank file (AI Toolkit's network type fullrank). {_APPLIED}")
    return [_layer(header, name, module, roles) for module, roles in parts.items()]


def module_of(key: str, prefixes: tuple[str, ...]) -> str:
    """The module that a key seems to name, whatever follows it: ``layers.0.attn.to_q``."""
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    for suffix in (*_ROLES, *_OTHER_FORMATS):
        if key.endswith(suffix):
            return key.removesuffix(suffix)
    return key


def _split(key: str, prefixes: tuple[str, ...]) -> tuple[str, str] | None:
    for prefix in prefixes:
        for suffix, role in _ROLES.items():
            if key.startswith(prefix) and key.endswith(suffix):
                return key[len(prefix) : len(key) - len(suffix)], role
    return None


def _strange_message(name: str, strange: list[str], total: int) -> str:
    kinds = {kind for key in strange for suffix, kind in _OTHER_FORMATS.items() if key.endswith(suffix)}
    some = ", ".join(repr(key) for key in strange[:4]) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
    if kinds:
        return f"{name!r} is a {' / '.join(sorted(kinds))} file. {_APPLIED} Keys that cannot be applied: {some}."
    return f"{name!r} has {len(strange)} of {total} keys that are of no known kind: {some}."


def _layer(header: Header, name: str, module: str, roles: Mapping[str, str]) -> LoraLayer:
    for role, other in (("down", "lora_A"), ("up", "lora_B")):
        if role not in roles:
            raise LoraError(f"{name!r} is damaged: {module!r} has no {other}. Export or download the file again.")
    down, up = header.tensors[roles["down"]], header.tensors[roles["up"]]
    for key in roles.values():
        if header.tensors[key].dtype not in _FLOATS:
            raise LoraError(f"{name!r}: {key!r} is {header.tensors[key].dtype}; a LoRA is F32, BF16 or F16.")
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or 0 in down.shape + up.shape:
        raise LoraError(
            f"{name!r} is damaged: {module!r} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, "
            "which do not multiply to one matrix."
        )
    alpha = roles.get("alpha")
    if alpha is not None and header.tensors[alpha].shape not in ((), (1,)):
        raise LoraError(f"{name!r} is damaged: {alpha!r} has shape {list(header.tensors[alpha].shape)}, not one value.")
    return LoraLayer(module, roles["down"], roles["up"], alpha, down.shape[0], (up.shape[0], down.shape[1]))
