"""Gemma's tokenizer from the sentencepiece model that single files embed.

Called through the sentencepiece library, which ComfyUI itself requires; transformers would need protobuf for it, and
its ``GemmaTokenizer(vocab_file=...)`` maps every text to one unknown token without an error.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import FileError


class SentencePieceTokenizer:
    """Text to ids with a leading ``<bos>``, equal to the released tokenizer's; padded on the right.

    Args:
        model: the bytes of a sentencepiece model.
        name: names their file in errors.

    Raises:
        FileError: they are no sentencepiece model, or one without the ids that are needed.
    """

    pad_left = False

    def __init__(self, model: bytes, name: str) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise FileError(f"The tokenizer in {name!r} is damaged: it is no sentencepiece model.") from error
        self._bos, self.pad_id = self._pieces.bos_id(), self._pieces.pad_id()
        if self._bos < 0 or self.pad_id < 0:
            raise FileError(f"The tokenizer in {name!r} is not Gemma's: it has no <bos> or no <pad>.")
        # the released tokenizer takes these for their tokens also inside of a text; sentencepiece spells them out
        ids = (self._bos, self.pad_id, self._pieces.eos_id(), self._pieces.unk_id())
        self._special = {self._pieces.id_to_piece(token): token for token in ids if token >= 0}
        self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")

    def __call__(self, text: str, settings: Any = None) -> list[int]:
        """The ids of a text, as many as it needs."""
        tokens = [self._bos]
        for part in self._split.split(text):
            tokens += [self._special[part]] if part in self._special else self._pieces.encode(part)
        return tokens
