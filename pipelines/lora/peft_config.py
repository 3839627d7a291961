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

_ADAPTER, _CONFIG = "adapter_model", "adapter_config.json"
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class PeftConfig:
    """What decides the scale of a layer.

    Attributes:
        alpha: of every layer; None where the configuration has none.
        patterns: (name or end of a name, as a regular expression; alpha) of layers with another one.
        root: whether alpha is divided by the root of the rank (rsLoRA), not by the rank.
    """

    alpha: float | None
    patterns: tuple[tuple[str, float], ...]
    root: bool

    def alpha_of(self, name: str, rank: int) -> float | None:
        """The alpha that, divided by the rank, is the scale of the layer that the file calls so, prefix left out."""
        own = (value for pattern, value in self.patterns if re.match(rf"(.*\.)?({pattern})$", name))
        alpha = next(own, self.alpha)
        return alpha * math.sqrt(rank) if alpha is not None and self.root else alpha


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
            return {main: _config(json.loads(companion.path.read_text("utf-8")))}
        if _METADATA in metadata:
            values = json.loads(metadata[_METADATA])
            parts = {key.partition(".")[0] for key in values}
            return {
                part: _config({k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{part}.")})
                for part in parts
            }
    except (OSError, ValueError, TypeError, AttributeError, re.error, RecursionError) as error:
        where = _CONFIG if companion is not None else f"its metadata {_METADATA}"
        raise LoraError(
            f"{name!r}: {where} cannot be understood, and alpha is in it. Export the file again."
        ) from error
    return {}


def _config(values: Mapping[str, Any]) -> PeftConfig:
    # LoRA and DoRA call it lora_alpha, LoKr and LoHa alpha
    alpha = values.get("lora_alpha", values.get("alpha"))
    patterns = {str(key): float(value) for key, value in (values.get("alpha_pattern") or {}).items()}
    for pattern in patterns:
        re.compile(pattern)
    return PeftConfig(
        None if alpha is None else float(alpha), tuple(patterns.items()), bool(values.get("use_rslora", False))
    )
