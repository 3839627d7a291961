"""Control images that were encoded, so that none is encoded twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..lora.stack import AppliedLora
    from ..pictures.picture import Picture
    from .wanted import PartKey

_MOST_BYTES = 1 << 28  # three megapixels' tokens of FLUX.2 are 3 MB


@dataclass(frozen=True)
class PicturesKey:
    """Equal keys mean equal bits.

    Attributes:
        autoencoder: which one.
        loras: on it.
        pictures: in order.
        settings: what else of the run decides, as the model says.
        device: which one computes.
        seed: of the generator that draws; None where nothing is drawn.
    """

    autoencoder: PartKey
    loras: tuple[AppliedLora, ...]
    pictures: tuple[Picture, ...]
    settings: Hashable
    device: str
    seed: int | None


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """What the loop gets of the control images.

    Attributes:
        references: on the CPU; nobody writes to them.
        state: of the generator after the draws; None where nothing is drawn.
    """

    references: tuple[torch.Tensor, ...]
    state: torch.Tensor | None = None

    @property
    def size(self) -> int:
        tensors = (*self.references, *([self.state] if self.state is not None else []))
        return sum(value.nbytes for value in tensors)


class PictureEncodings:
    """The latest ones; the least used leave first."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[PicturesKey, EncodedPictures] = OrderedDict()

    def find(self, key: PicturesKey) -> EncodedPictures | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: PicturesKey, encoded: EncodedPictures) -> None:
        self._kept[key] = encoded
        self._kept.move_to_end(key)
        while sum(own.size for own in self._kept.values()) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()
