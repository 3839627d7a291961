"""Files that other tools quantised in ways that are not read: named by how their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import FileError
from ...words import shown
from .formats import INSTEAD, NVFP4, TOTAL

if TYPE_CHECKING:
    from ..header import TensorInfo
    from .said import Said

# ends of names; of several in one file, the first one here tells
_ENDINGS = (
    (".wscales", "SVDQuant (nunchaku)"), (".smooth_factor", "SVDQuant (nunchaku)"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes, nf4"), (".quant_state.bitsandbytes__fp4", "bitsandbytes, fp4"),
    (".absmax", "bitsandbytes, 4-bit"), (".quant_map", "bitsandbytes, 4-bit"), (".SCB", "bitsandbytes, int8"),
    (".g_idx", "GPTQ"), (".qweight", "GPTQ or AWQ"),
    (".weight._data", "optimum-quanto"), (".weight_packed", "compressed-tensors"),
    ("._weight_qdata", "torchao"), (".W_q", "HQQ"), (".weight_quantizer._scale", "ModelOpt, its own checkpoint"),
    (".pre_quant_scale", "ModelOpt, with scales of inputs"), (".biases", "MLX"),
)  # fmt: skip


def check_others(stored: Mapping[str, TensorInfo], paths: Mapping[str, Path], said: Mapping[str, Said]) -> None:
    """Raises FileError where another tool quantised a file in its own way."""
    first: dict[str, str] = {}
    for key in stored:
        for ending, _ in _ENDINGS:
            if key.endswith(ending):
                first.setdefault(ending, key)
        layer = key.removesuffix(TOTAL)
        if layer != key and (layer not in said or said[layer].format not in NVFP4):
            first.setdefault(TOTAL, key)
    for ending, tool in (*_ENDINGS, (TOTAL, "nvfp4 of another tool than ComfyUI's")):
        if ending in first:
            raise FileError(
                f"{paths[first[ending]].name!r} holds weights quantised by {tool} (the first is "
                f"{shown(first[ending])}), which are not read. {INSTEAD}"
            )
