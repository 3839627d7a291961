"""Qwen3 as a text encoder, with its chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Qwen3Config, Qwen3Model

from ...errors import FileError
from ..tokenizers.folder import FolderTokenizer
from .encoder import LanguageModel, with_sdpa

if TYPE_CHECKING:
    from ...weights.source import Source
    from .encoder import Tokenizer
    from .files import LanguageModelFiles

# what the template makes of a prompt; without thinking an empty thought follows
_TEXT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_NO_THOUGHT = "<think>\n\n</think>\n\n"


class ChatTokenizer(FolderTokenizer):
    """A prompt in Qwen3's chat template: the folder's own where it has one, as AI Toolkit does."""

    def __init__(self, folder: Path, name: str, thinking: bool) -> None:
        super().__init__(folder, name)
        self._thinking = thinking

    def _ids(self, text: str, settings: Any) -> list[int]:
        if self.tokenizer.chat_template:
            conversation = [{"role": "user", "content": text}]
            whole = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, enable_thinking=self._thinking
            )
        else:
            whole = _TEXT.format(text) + ("" if self._thinking else _NO_THOUGHT)
        return self.tokenizer(whole).input_ids


def tokenizer_of(thinking: bool) -> Callable[[Source], Tokenizer]:
    """Loads the tokenizer of a source: always a folder, since no single file holds Qwen's."""

    def load(source: Source) -> Tokenizer:
        found = source.tokenizer()
        if not isinstance(found, Path):
            raise FileError(f"{source.name!r} has no tokenizer: {source.tokenizer_name} is missing. Download it again.")
        return ChatTokenizer(found, source.name, thinking)

    return load


def make(config: Mapping[str, Any]) -> Qwen3Model:
    return Qwen3Model(with_sdpa(Qwen3Config.from_dict(dict(config))))


def qwen3_encoder(
    files: LanguageModelFiles,
    *,
    states: Sequence[int],
    thinking: bool,
    needs: str,
    part: type[LanguageModel] = LanguageModel,
) -> LanguageModel:
    """Qwen3 as the part ``text_encoder``, padded; see :class:`.encoder.LanguageModel`."""
    return part("text_encoder", files, make, tokenizer_of(thinking), states=states, padded=True, needs=needs)
