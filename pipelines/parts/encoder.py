"""What goes into an encoder and comes out of it, for every model alike."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .part import Part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..pictures.picture import Picture


@dataclass(frozen=True)
class Text:
    """A text as an encoder gets it, with everything that changes its embedding: the key of the prompt cache.

    Attributes:
        text: template and prompt.
        length: tokens at most; longer texts are cut. Shorter ones are padded where the model's encoder does so.
        settings: what else the encoder can be told; hashable, made and read by the model alone.
        encoder: the part that encodes it: a model with two encoders makes two texts of a prompt.
        pictures: what the encoder sees beside the text.
    """

    text: str
    length: int
    settings: Any = None
    encoder: str = "text_encoder"
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded text, on the CPU.

    Attributes:
        embeds: [1, length, D], in the run's dtype.
        mask: [1, length], int64, 1 at the tokens.
        cut_tokens: how many tokens did not fit.
        pooled: [1, D'], one vector for the whole text; None where the encoder has none.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    cut_tokens: int
    pooled: torch.Tensor | None = None

    def to(self, device: str) -> Embedding:
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Embedding(self.embeds.to(device), self.mask.to(device), self.cut_tokens, pooled)


class Encoder(Part):
    """A part that makes embeddings."""

    role = "encoder"

    @abstractmethod
    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        """Encodes one text on ``device``, with the part as :meth:`load` made it."""
