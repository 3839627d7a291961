"""The tokenizer of a folder, by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ...errors import AITKError, FileError
from ...layers.fill import no_memory, out_of_memory


class FolderTokenizer:
    """What AutoTokenizer makes of a folder; a processor would need torchvision and gives the same ids.

    Attributes:
        tokenizer: transformers'.
        pad_id: of its padding token.
        pad_left: on which side it pads.

    Raises:
        FileError: it is damaged, or has no padding token.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        with _named(name):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        if self.tokenizer.pad_token_id is None:
            raise FileError(f"The tokenizer of {name!r} has no padding token. Download it again.")
        self.pad_id: int = self.tokenizer.pad_token_id
        self.pad_left: bool = self.tokenizer.padding_side == "left"

    def __call__(self, text: str, settings: Any) -> list[int]:
        """The ids of a text; raises FileError where the folder's settings or its template are damaged."""
        with _named(self._name):
            return self._ids(text, settings)

    def _ids(self, text: str, settings: Any) -> list[int]:
        """Those ids; whatever is raised is named by the caller."""
        del settings
        return self.tokenizer(text).input_ids


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except AITKError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise no_memory(f"the tokenizer of {name!r}") from error
        # the library's exceptions for a damaged file are of every kind, and their texts name paths
        reason = type(error).__name__
        raise FileError(f"The tokenizer of {name!r} cannot be used ({reason}). Download it again.") from error
