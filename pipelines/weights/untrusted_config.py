"""What a model's configuration may say: a file that anybody can write, and that libraries would obey.

transformers takes code from where ``auto_map`` says, and kernels from where ``_attn_implementation`` says. Sizes are
followed by memory and time before a tensor contradicts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import FileError

# keys that tell a library what to load or run, not what the model is; so do all that begin with an underscore but this
_CLASS = "_class_name"
_DROPPED = frozenset(
    (
        *("auto_map", "attn_implementation", "experts_implementation", "custom_pipelines", "custom_generate"),
        *("base_model_tp_plan", "base_model_pp_plan", "use_kernels", "trust_remote_code", "quantization_config"),
        *("transformers_weights", "adapters"),
    )
)
# what no real model comes near
_COUNTED = ("layers", "depth", "blocks", "per_block")
_MOST_COUNTED = 1 << 10
_MOST = 1 << 31
_MOST_IN_LIST = 1 << 20
_LONGEST = 1 << 10  # entries, of a list or an object
_LONGEST_TEXT = 200  # letters
_DEEPEST = 8


def checked_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration without keys that would load or run something, its texts cut.

    Args:
        config: as the file has it.
        where: names the file in errors.

    Raises:
        FileError: a number in it is none that a model has.
    """
    return _object(config, where, 0)


def _object(values: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
    if depth > _DEEPEST or len(values) > _LONGEST:
        raise FileError(f"{where} cannot be used: it is too deep or too long. Download it again.")
    found = {}
    for key, value in values.items():
        if key in _DROPPED or (key.startswith("_") and key != _CLASS) or len(key) > _LONGEST_TEXT:
            continue
        counted = any(key.endswith(word) for word in _COUNTED)
        if counted and isinstance(value, int | float) and not 0 <= value <= _MOST_COUNTED:
            raise FileError(f"{where} cannot be used: its {key} is no number of layers. Download it again.")
        found[key] = _value(key, value, where, depth)
    return found


def _value(key: str, value: Any, where: str, depth: int) -> Any:
    if isinstance(value, Mapping):
        return _object(value, where, depth + 1)
    if isinstance(value, list):
        if len(value) > _LONGEST or depth > _DEEPEST:
            raise FileError(f"{where} cannot be used: its {key} has {len(value):,} entries. Download it again.")
        for item in value:
            if isinstance(item, int | float) and not abs(item) <= _MOST_IN_LIST:
                raise FileError(f"{where} cannot be used: a number in its {key} is too large. Download it again.")
        return [_value(key, item, where, depth + 1) for item in value]
    if isinstance(value, str):
        # half a surrogate cannot be written anywhere
        return value[:_LONGEST_TEXT].encode(errors="replace").decode()
    if (isinstance(value, int) and abs(value) > _MOST) or (isinstance(value, float) and not math.isfinite(value)):
        raise FileError(f"{where} cannot be used: its {key} is no size that a model has. Download it again.")
    return value
