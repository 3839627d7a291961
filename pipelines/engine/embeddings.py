"""The texts that were encoded, so that none is encoded twice."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..lora.stack import AppliedLora
    from ..parts.encoder import Embedding, Text
    from .wanted import PartKey

MOST = 64  # kept texts; one is about 1 MB with Lumina2

# the encoder, what its LoRAs are, the text with its pictures, the device
EmbeddingKey = tuple["PartKey", tuple["AppliedLora", ...], "Text", str]


class Embeddings:
    """The latest texts; the least used leave first.

    Attributes:
        most: texts that are kept.
    """

    def __init__(self) -> None:
        self.most = MOST
        self._kept: OrderedDict[EmbeddingKey, Embedding] = OrderedDict()

    def missing(self, keys: list[EmbeddingKey]) -> list[EmbeddingKey]:
        """Those that are not known, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._kept]

    def put(self, key: EmbeddingKey, embedding: Embedding) -> None:
        self._kept[key] = embedding

    def take(self, keys: list[EmbeddingKey]) -> list[Embedding]:
        """Known ones, in order."""
        for key in keys:
            self._kept.move_to_end(key)
        found = [self._kept[key] for key in keys]
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return found

    def clear(self) -> None:
        self._kept.clear()
