"""The chat templates of FLUX.2's text encoders, and the tokenizers that read them.

A folder's own template is used where there is one, as AI Toolkit does; elsewhere the text that it renders is spelled
out here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from ...errors import FileError
from ...parts.tekken_tokenizer import TekkenTokenizer
from ...sources.folder import read_json
from ...sources.source import Source
from .text_files import MISTRAL, TextEncoderFacts

_PROCESSOR_TEMPLATE = "chat_template.json"
# what the template of Qwen3 makes of a prompt without thinking
_QWEN3_TEXT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Tokenizer(Protocol):
    """A prompt to the ids of a whole conversation, as many as it needs."""

    pad_id: int
    pad_left: bool

    def __call__(self, prompt: str, system_message: str) -> list[int]: ...


class _Folder:
    """What AutoTokenizer makes of a folder; a processor would need torchvision and gives the same ids."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            # the library's exceptions for a damaged file are of every kind
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise FileError(f"The tokenizer of {name!r} cannot be used ({reason}). Download it again.") from error
        if self.tokenizer.pad_token_id is None:
            raise FileError(f"The tokenizer of {name!r} has no padding token. Download it again.")
        self.pad_id: int = self.tokenizer.pad_token_id
        self.pad_left = self.tokenizer.padding_side == "left"


class MistralFolderTokenizer(_Folder):
    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        beside = folder / _PROCESSOR_TEMPLATE
        if not self.tokenizer.chat_template and beside.is_file():
            # where processors keep it, and tokenizers do not look
            self.tokenizer.chat_template = read_json(beside, name).get("chat_template")
        if not self.tokenizer.chat_template:
            raise FileError(f"The tokenizer of {name!r} has no chat template. Download the whole folder again.")

    def __call__(self, prompt: str, system_message: str) -> list[int]:
        conversation = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("system", system_message), ("user", prompt))
        ]
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
        # the template writes the special tokens
        return self.tokenizer(text, add_special_tokens=False).input_ids


class Qwen3FolderTokenizer(_Folder):
    def __call__(self, prompt: str, system_message: str) -> list[int]:
        text = _QWEN3_TEXT.format(prompt) if not self.tokenizer.chat_template else self._rendered(prompt)
        return self.tokenizer(text).input_ids

    def _rendered(self, prompt: str) -> str:
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


class MistralFileTokenizer:
    """Mistral's own tokenizer file, which ComfyUI's text encoder files embed; padded on the left as the release is."""

    pad_left = True

    def __init__(self, model: bytes, name: str) -> None:
        self._tokenizer = TekkenTokenizer(model, name)
        self.pad_id = self._tokenizer.pad_id

    def __call__(self, prompt: str, system_message: str) -> list[int]:
        text = f"[SYSTEM_PROMPT]{system_message}[/SYSTEM_PROMPT][INST]{prompt}[/INST]"
        return [self._tokenizer.bos_id, *self._tokenizer(text)]


def load_tokenizer(facts: TextEncoderFacts, source: Source) -> Tokenizer:
    """The tokenizer of a folder, or of the bytes in a single file; raises FileError."""
    found = source.tokenizer()
    if isinstance(found, Path):
        return (
            MistralFolderTokenizer(found, source.name) if facts is MISTRAL else Qwen3FolderTokenizer(found, source.name)
        )
    return MistralFileTokenizer(found or b"", source.name)
