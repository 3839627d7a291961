"""Gemma2 as a text encoder.

Differences from calling the library's model as it comes, each of which changes embeddings:

* The tokenizer pads on the right. Gemma's own default is left, and the transformer takes the first tokens.
* Soft-capping of the attention logits, and the kernel with it, is set here on every call. Which one a plain model does
  depends on the version of transformers: 4.54 to 5.5 run SDPA without it, 5.23 eager attention with it. Without
  soft-capping it is SDPA in every version: eager attention rounds otherwise, in bfloat16 up to 6 levels of a picture.
* The rotary frequencies can be rounded to the run's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Gemma2Config, Gemma2Model

from ..tokenizers.folder import FolderTokenizer
from ..tokenizers.sentencepiece_model import SentencePieceTokenizer
from .encoder import EncoderSettings, LanguageModel, LoadedLanguageModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...weights.source import Source
    from ..encoder import Text
    from .encoder import Tokenizer

# of a Gemma2ForCausalLM checkpoint, or one of an older transformers; a Gemma2Model has neither
SURPLUS = ("lm_head.", "rotary_emb.")


@dataclass(frozen=True)
class Gemma2Settings(EncoderSettings):
    """What changes an embedding besides the text.

    Attributes:
        softcap: attention logits become softcap * tanh(logits / softcap); None leaves them.
    """

    softcap: float | None = None


class LoadedGemma2(LoadedLanguageModel):
    """Gemma2 whose attention can be set for the next call."""

    def set_attention(self, settings: Gemma2Settings) -> None:
        model: Any = self.model
        # every layer reads it there on every call; the public setter is missing before transformers 4.53
        model.config._attn_implementation = "sdpa" if settings.softcap is None else "eager"
        for layer in model.layers:
            layer.self_attn.attn_logit_softcapping = settings.softcap


class Gemma2(LanguageModel):
    """See :class:`.encoder.LanguageModel`."""

    def _loaded(self, tokenizer: Tokenizer, model: nn.Module, dtype: torch.dtype, name: str) -> LoadedLanguageModel:
        return LoadedGemma2(tokenizer, model, dtype, name)

    def _configure(self, module: LoadedLanguageModel, text: Text) -> None:
        super()._configure(module, text)
        assert isinstance(module, LoadedGemma2)
        module.set_attention(text.settings)


class _FolderTokenizer(FolderTokenizer):
    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.pad_left = False


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a folder, or of a sentencepiece model; raises FileError."""
    found = source.tokenizer()
    if isinstance(found, Path):
        return _FolderTokenizer(found, source.name)
    return SentencePieceTokenizer(found or b"", source.name)


def make(config: Mapping[str, Any]) -> Gemma2Model:
    # not AutoModel.from_config, which makes the buffers in the dtype of the file's config: a bfloat16 embed_scale in a
    # float32 run moves the embeddings by 2e-3
    return Gemma2Model(Gemma2Config.from_dict(dict(config)))
