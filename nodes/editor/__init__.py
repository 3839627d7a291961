"""What the graph editor asks while somebody builds a graph: answers to its GET requests, as plain values.

The extension in ``web/js`` asks them; a graph runs without. An answer holds no path and no token, and names are
confined to ComfyUI's folders as they are in the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .bases import base
from .loras import lora, lora_digest
from .models import models
from .weights import weights

if TYPE_CHECKING:
    from ..host import Answer

# path on ComfyUI's server -> what answers
ANSWERS: Mapping[str, Answer] = {
    "/aitk/models": models,
    "/aitk/lora": lora,
    "/aitk/lora/digest": lora_digest,
    "/aitk/weights": weights,
    "/aitk/base": base,
}

__all__ = ["ANSWERS"]
