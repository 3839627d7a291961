"""What a folder's ``config.json`` says of how its weights were quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FileError
from ..files.quantised.formats import MODELOPT
from ..words import printable, shown

_BLOCKS = (None, [128, 128])
# ModelOpt's algorithms whose weights are read; activations differ between the last two, and have no part here
_MODELOPT = ("FP8", "NVFP4", "W4A16_NVFP4")
_GROUP = 16
_LONGEST = 40  # letters of a method


def unsaid_format(config: Mapping[str, Any], name: str) -> str:
    """The format of weights with two scales of which the files themselves say nothing; empty where it is not said.

    Args:
        config: a part's configuration; what else is in it, or of what kind, does not matter.
        name: of the folder, for errors.

    Raises:
        FileError: a library quantised the weights in a way that only itself reads.
    """
    said = config.get("quantization_config")
    if not isinstance(said, Mapping) or not said:
        return ""
    method = said.get("quant_method", said.get("method", ""))
    # float8 with scales of blocks or rows
    if method == "fp8" and said.get("weight_block_size") in _BLOCKS:
        return ""
    if method == "modelopt" and said.get("quant_algo") in _MODELOPT and _is_as_exported(said):
        return MODELOPT
    raise FileError(
        f"{name!r} is quantised ({_title(said, method)}), which is not read. Get the unquantised folder, and choose a "
        "quantisation on AITK Runtime Options where memory is short."
    )


def _is_as_exported(said: Mapping[str, Any]) -> bool:
    """Whether ModelOpt's weights lie as it writes them; another program's setting says that they do not."""
    groups = said.get("config_groups", {})
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)] if isinstance(
        groups, Mapping
    ) else []  # fmt: skip
    sizes = [own.get("group_size", _GROUP) for own in weights if isinstance(own, Mapping)]
    return not said.get("swap_weight_nibbles") and all(size in (_GROUP, None) for size in sizes)


def _title(said: Mapping[str, Any], method: Any) -> str:
    if method == "bitsandbytes" or any(key.startswith(("load_in_", "bnb_")) for key in said):
        kind = said.get("bnb_4bit_quant_type")
        if said.get("load_in_4bit") or said.get("_load_in_4bit"):
            return f"bitsandbytes 4-bit, {kind}" if kind in ("nf4", "fp4") else "bitsandbytes 4-bit"
        return "bitsandbytes 8-bit"
    if not isinstance(method, str):
        return f"by {shown(method)}"
    algorithm = said.get("quant_algo")
    named = f"{method} {algorithm}" if method == "modelopt" and isinstance(algorithm, str) else method
    return printable(named[:_LONGEST]) or "in a way that it does not name"
