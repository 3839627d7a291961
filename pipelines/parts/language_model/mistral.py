"""Mistral Small 3 as a text encoder, with its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import MistralConfig, MistralModel

from ...errors import FileError
from ...weights.folder import read_json
from ..tokenizers.folder import FolderTokenizer
from ..tokenizers.tekken import TekkenTokenizer
from .encoder import EncoderSettings, with_sdpa

if TYPE_CHECKING:
    from ...weights.source import Source
    from .encoder import Tokenizer

_PROCESSOR_TEMPLATE = "chat_template.json"


@dataclass(frozen=True)
class MistralSettings(EncoderSettings):
    """``system_message``: of the template."""

    system_message: str = ""


class MistralFolderTokenizer(FolderTokenizer):
    """A prompt in the folder's own chat template."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        beside = folder / _PROCESSOR_TEMPLATE
        if not self.tokenizer.chat_template and beside.is_file():
            # where processors keep it, and tokenizers do not look
            self.tokenizer.chat_template = read_json(beside, name).get("chat_template")
        if not self.tokenizer.chat_template:
            raise FileError(f"The tokenizer of {name!r} has no chat template. Download the whole folder again.")

    def _ids(self, text: str, settings: MistralSettings) -> list[int]:
        conversation = [
            {"role": role, "content": [{"type": "text", "text": content}]}
            for role, content in (("system", settings.system_message), ("user", text))
        ]
        whole = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
        # the template writes the special tokens
        return self.tokenizer(whole, add_special_tokens=False).input_ids


class MistralFileTokenizer:
    """Mistral's own tokenizer file, which ComfyUI's text encoder files embed; padded on the left as the release is."""

    pad_left = True

    def __init__(self, model: bytes, name: str) -> None:
        self._tokenizer = TekkenTokenizer(model, name)
        self.pad_id = self._tokenizer.pad_id

    def __call__(self, text: str, settings: MistralSettings) -> list[int]:
        whole = f"[SYSTEM_PROMPT]{settings.system_message}[/SYSTEM_PROMPT][INST]{text}[/INST]"
        return [self._tokenizer.bos_id, *self._tokenizer(whole)]


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a folder, or of the bytes in a single file; raises FileError."""
    found = source.tokenizer()
    if isinstance(found, Path):
        return MistralFolderTokenizer(found, source.name)
    return MistralFileTokenizer(found or b"", source.name)


def make(config: Mapping[str, Any]) -> MistralModel:
    return MistralModel(with_sdpa(MistralConfig.from_dict(dict(config))))
