"""What a key of a LoRA file says: the name of a layer, and the role of the tensor in the layer's change.

``lora_unet_blocks_0_proj.lora_down.weight`` is the name ``lora_unet_blocks_0_proj`` and the role ``lora_A``. Names are
looked up whole by ``names.py``; nothing is renamed by replacing strings.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .kinds import DECOMPOSED, KINDS

_ROLES = {suffix: role for kind in KINDS for suffix, role in kind.suffixes.items()} | DECOMPOSED
_MOST_STEPS = max(suffix.count(".") for suffix in _ROLES)
# PEFT puts the adapter's name in, which may be anything, but its last step not what stands there in other files
_ADAPTER = re.compile(
    r"\.(lora_[ABE]|lora_magnitude_vector|ia3_l|lokr_\w+|hada_\w+|oft_\w+|boft_\w+)"
    r"\.(?!(?:.*\.)?(?:alpha|bias|weight_scale|scale_weight|scaled_oft)$).+?((?:\.weight)?)$",
    re.DOTALL,
)
# ends of keys of what is known and not applied
_UNAPPLIED = re.compile(
    r"""\.(?:
        (?P<OFT>oft_\w+(?:\.\w+)?) | (?P<BOFT>boft_\w+) | (?P<GLoRA>bm\.weight) | (?P<VeRA>vera_lambda_[bd])
        | (?P<embeddings>lora_embedding_[AB]) | (?P<biases>lora_[AB]\.bias)
        | (?P<whole>modules_to_save(?:\.\w+)?\.(?:weight|bias)) | (?P<shape>reshape_weight)
        | (?P<scalar>scalar) | (?P<scaled>(?:lora_[AB]|lora_down|lora_up)\.(?:weight_scale|scale_weight))
    )$""",
    re.VERBOSE,
)
_TITLES = {
    "OFT": "OFT of another make (oft_diag, oft_r)",
    "BOFT": "BOFT of PEFT",
    "GLoRA": "GLoRA with a kernel in the middle",
    "embeddings": "LoRA of an embedding table",
    "biases": "biases of a LoRA's own matrices",
    "whole": "whole weights",
    "shape": "a LoRA that changes shapes",
    "scalar": "LyCORIS' trained scalars",
    "scaled": "LoRA matrices with float8 scales",
}


class Key(NamedTuple):
    """One key, taken apart.

    Attributes:
        name: of the layer, as the file spells it, prefix and all.
        role: of the tensor; empty where its end is of no known kind.
        unapplied: what it is, for people, where its kind is known and not applied; empty where it is.
    """

    name: str
    role: str
    unapplied: str = ""


def take_apart(key: str) -> Key:
    """The name and the role. A key of no known kind is a name alone."""
    end = _known_end(key)
    if end is not None:
        return Key(key[: len(key) - len(end)], _ROLES[end])
    named = _ADAPTER.search(key)
    if named is not None:
        plain = f".{named[1]}{named[2]}"
        if plain in _ROLES:
            return Key(key[: named.start()], _ROLES[plain])
        key = key[: named.start()] + plain if named[1].startswith(("oft_", "boft_")) else key
    other = _UNAPPLIED.search(key)
    if other is not None:
        kind = str(other.lastgroup)
        return Key(key[: other.start()], "", _TITLES.get(kind, kind))
    return Key(key, "")


def _known_end(key: str) -> str | None:
    """The longest end that is a role's."""
    steps = key.rsplit(".", _MOST_STEPS)
    for count in range(len(steps) - 1, 0, -1):
        end = "." + ".".join(steps[-count:])
        if end in _ROLES:
            return end
        # diffusers' oldest way: to_q_lora.down.weight
        if count == 2 and steps[-3].endswith("_lora") and f"_lora{end}" in _ROLES:
            return f"_lora{end}"
    return None
