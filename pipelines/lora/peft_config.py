"""Alpha where PEFT and diffusers keep it: beside the tensors, not among them.

PEFT saves ``adapter_config.json`` next to ``adapter_model.safetensors``; diffusers' ``save_lora_weights`` can put the
same values, each with its part in front, into the metadata ``lora_adapter_metadata``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoraError
from ..files.header import FileStamp
from .kinds.adalora import EPSILON

_ADAPTER, _CONFIG = "adapter_model", "adapter_config.json"
_METADATA = "lora_adapter_metadata"


# a name, whole or its end, with a dot between its steps, which may be escaped as in a regular expression: all that PEFT
# and diffusers write by themselves. Any other expression may be one that never ends
_SIMPLE = re.compile(r"\^?((?:[\w-]+\\?\.)*[\w-]+)\$?", re.ASCII)
_MOST_PATTERNS, _LONGEST_PATTERN = 10_000, 300
_LARGEST = 1 << 24  # characters of a configuration


# name or end of a name -> (its place in the list; whether it is the whole name; the value)
Patterns = Mapping[str, tuple[int, bool, float]]


@dataclass(frozen=True)
class PeftConfig:
    """What decides the scale of a layer.

    Attributes:
        alpha: of every layer; None where the configuration has none.
        patterns: of alpha.
        rank: of every layer; None where the configuration has none.
        ranks: patterns of it.
        root: whether alpha is divided by the root of the rank (rsLoRA), not by the rank.
        first_rank: AdaLoRA's, by which alpha is divided however many ranks are left; None for other kinds.
        usual_turns: whether OFT's blocks are made as PEFT does by default.
    """

    alpha: float | None
    patterns: Patterns
    rank: float | None
    ranks: Patterns
    root: bool
    first_rank: int | None = None
    usual_turns: bool = True

    def alpha_of(self, name: str, rank: int) -> float | None:
        """The alpha that, divided by the rank, is the scale of the layer that the file calls so, prefix left out."""
        alpha = _value(name, self.patterns, self.alpha)
        if alpha is None:
            return None
        if self.first_rank is not None:
            return alpha * (rank + EPSILON) / (self.first_rank + EPSILON)
        return alpha * math.sqrt(rank) if self.root else alpha

    def rank_of(self, name: str) -> int | None:
        """The rank that a layer was given, which one of whole factors does not show."""
        rank = _value(name, self.ranks, self.rank)
        return None if rank is None else int(rank)


def _value(name: str, patterns: Patterns, usual: float | None) -> float | None:
    steps = name.split(".")
    ends = [(".".join(steps[start:]), start == 0) for start in range(len(steps))]
    found = [(patterns[end], whole) for end, whole in ends if end in patterns]
    # as in PEFT, the first in the list counts
    own = min((pattern for pattern, whole in found if whole or not pattern[1]), default=None)
    return usual if own is None else own[2]


def companion_of(path: Path) -> FileStamp | None:
    """The configuration that PEFT saved beside a file; None where there is none."""
    beside = path.with_name(_CONFIG)
    return FileStamp.of(beside) if path.stem == _ADAPTER and beside.is_file() else None


def read_configs(
    companion: FileStamp | None, metadata: Mapping[str, str], name: str, main: str
) -> dict[str, PeftConfig]:
    """Part -> configuration, from the file beside, which is of the ``main`` part, or from the metadata.

    Empty where there is neither.

    Raises:
        LoraError: it is there and cannot be understood: without it every strength would be wrong.
    """
    try:
        if companion is not None:
            return {main: _config(_object(_text(companion)))}
        if _METADATA in metadata:
            parts: dict[str, dict[str, Any]] = {}
            for key, value in _object(metadata[_METADATA]).items():
                part, _, setting = key.partition(".")
                parts.setdefault(part, {})[setting] = value
            return {part: _config(values) for part, values in parts.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        where = _CONFIG if companion is not None else f"its metadata {_METADATA}"
        raise LoraError(
            f"{name!r}: {where} cannot be understood, and alpha is in it. Export the file again."
        ) from error
    return {}


def _text(companion: FileStamp) -> str:
    if companion.size > _LARGEST:
        raise ValueError("too large for a configuration")
    return companion.path.read_text("utf-8")


def _object(text: str) -> dict[str, Any]:
    if len(text) > _LARGEST:
        raise ValueError("too large for a configuration")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def _config(values: Mapping[str, Any]) -> PeftConfig:
    # LoRA and DoRA call it lora_alpha, LoKr and LoHa alpha
    alpha = values.get("lora_alpha", values.get("alpha"))
    # read where it counts: for LoKr alone
    rank = values.get("r") if values.get("peft_type") == "LOKR" else None
    return PeftConfig(
        None if alpha is None else _number(alpha),
        _patterns(values.get("alpha_pattern") or {}),
        None if rank is None else _positive(rank),
        _patterns((values.get("rank_pattern") or {}) if rank is not None else {}),
        bool(values.get("use_rslora", False)),
        _first_rank(values),
        bool(values.get("use_cayley_neumann", True))
        and values.get("num_cayley_neumann_terms", 5) == 5
        and not values.get("coft", False),
    )


def _first_rank(values: Mapping[str, Any]) -> int | None:
    if values.get("peft_type") != "ADALORA":
        return None
    # PEFT's default
    return int(_positive(values.get("init_r", 12)))


def _patterns(values: Mapping[str, Any]) -> Patterns:
    if len(values) > _MOST_PATTERNS:
        raise ValueError("too many patterns")
    patterns: dict[str, tuple[int, bool, float]] = {}
    for place, (pattern, value) in enumerate(values.items()):
        simple = _SIMPLE.fullmatch(pattern) if len(pattern) <= _LONGEST_PATTERN else None
        if simple is None:
            raise ValueError("a pattern is no name")
        patterns.setdefault(simple[1].replace("\\", ""), (place, pattern.startswith("^"), _number(value)))
    return patterns


def _positive(value: Any) -> float:
    number = _number(value)
    if number < 1:
        raise ValueError("no rank")
    return number


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number
