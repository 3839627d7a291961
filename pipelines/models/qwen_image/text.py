"""Qwen2.5-VL as the text encoder: the template's head is encoded and left out, and what follows is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...parts.encoder import Embedding
from ...parts.language_model import qwen2_5
from ...parts.language_model.encoder import EncoderSettings, LanguageModel
from ...parts.language_model.qwen2_5_files import QWEN2_5_VL

if TYPE_CHECKING:
    from torch import nn

    from ...parts.encoder import Text


@dataclass(frozen=True)
class TemplateSettings(EncoderSettings):
    """Settings of a text in a template.

    Attributes:
        dropped: rows in front that are left out.
        kept: rows behind them that are kept at most: encoding more than are kept is what diffusers does.
    """

    dropped: int = 0
    kept: int = 0


class TextEncoder(LanguageModel):
    """The last hidden state of a text, without padding and without the template's head."""

    def __init__(self, needs: str) -> None:
        super().__init__(
            "text_encoder",
            QWEN2_5_VL,
            qwen2_5.make,
            qwen2_5.load_tokenizer,
            states=(-1,),
            padded=False,
            needs=needs,
            surplus=qwen2_5.UNUSED,
        )

    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        settings = text.settings
        assert isinstance(settings, TemplateSettings)
        found = super().encode(module, text, device)
        rows = slice(settings.dropped, settings.dropped + settings.kept)
        cut = max(0, found.mask.shape[1] - rows.stop)
        # of its own memory: what is left out is not kept
        return Embedding(found.embeds[:, rows].clone(), found.mask[:, rows].clone(), found.cut_tokens + cut)
