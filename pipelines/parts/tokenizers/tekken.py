"""Mistral's tokenizer from the ``tekken.json`` that single files embed.

Such a file holds byte strings with ranks, and the special tokens apart. The special tokens have the first ids, a byte
string the id of its rank plus the number of special tokens; both is so in the released fast tokenizer too, whose merges
were derived from the ranks as they are here. The tokenizers library alone does the work, which every version of
transformers requires: the libraries that read the file itself (mistral-common, tiktoken) need not be there.

Words are split as in the release's tokenizer.json, not by the pattern in tekken.json. The release's is another model's,
a known slip (transformers corrects it where ``fix_mistral_regex=True`` is asked for); AI Toolkit and diffusers load it
as it is, so what they render comes of it. Scripts with combining marks (Devanagari, Thai) get other ids by it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping

from ...errors import FileError

# tokenizer.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_MOST_SPECIAL = 1 << 16  # more than any file has: Mistral's have 1000
_FILLER = "<SPECIAL_{}>"  # the name of a special token that the file counts and does not name


class _OddTekken(ValueError):
    """Says in words of ours what is wrong with a tekken.json."""


class TekkenTokenizer:
    """Text to ids, equal to the released fast tokenizer's without its leading ``<s>``.

    Attributes:
        bos_id: of ``<s>``, which is put nowhere that the text does not spell it.
        pad_id: of ``<pad>``.

    Args:
        model: the bytes of a tekken.json.
        name: names their file in errors.

    Raises:
        FileError: they are no tekken.json, or one that lacks what is needed.
    """

    def __init__(self, model: bytes, name: str) -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        try:
            special, ranks = _read(model)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            # others' texts repeat what the file holds
            reason = str(error) if isinstance(error, _OddTekken) else type(error).__name__
            raise FileError(f"The tokenizer in {name!r} is damaged: it is no tekken.json ({reason}).") from error
        self.bos_id, self.pad_id = special["<s>"], special["<pad>"]
        self._special = special
        # the longest first, as the library takes them; they are apart from the vocabulary, which may have the same text
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
        spelled = {piece: _spell(piece) for piece in ranks}
        vocabulary = {spelled[piece]: rank + len(special) for piece, rank in ranks.items()}
        merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
        # a word that is a token is never put together: there may be no way of merges to it
        self._tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])

    def __call__(self, text: str) -> list[int]:
        """The ids of a text, as many as it needs; a special token that it spells is that token."""
        tokens: list[int] = []
        for part in self._split.split(text):
            tokens += [self._special[part]] if part in self._special else self._tokenizer.encode(part).ids
        return tokens


def _read(model: bytes) -> tuple[dict[str, int], dict[bytes, int]]:
    """Special token -> id, and byte string -> rank, in the order of ranks.

    Raises _OddTekken with the reason, or whatever else comes of JSON of another shape.
    """
    content = json.loads(model)
    config, listed, entries = content["config"], content["special_tokens"], content["vocab"]
    count = int(config.get("default_num_special_tokens") or len(listed))
    if count > _MOST_SPECIAL:
        raise _OddTekken(f"{str(count)[:20]} special tokens")
    special = {_FILLER.format(token): token for token in range(len(listed), count)}
    special |= {str(entry["token_str"]): int(entry["rank"]) for entry in listed}
    if sorted(special.values()) != list(range(count)) or not {"<s>", "<pad>"} <= special.keys():
        raise _OddTekken(f"its special tokens are not {count} with <s> and <pad> among them")
    # the released vocabulary goes on with strings that have no id
    kept = entries[: max(0, int(config.get("default_vocab_size") or count + len(entries)) - count)]
    ranks = {base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) for entry in kept}
    if list(ranks.values()) != list(range(len(kept))):
        raise _OddTekken("the ranks of its vocabulary are not 0, 1, 2 and so on")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise _OddTekken("some bytes have no token in it")
    return special, ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token: by the rank of what it makes, then by its own ranks."""
    # the ranks are in order
    for piece in ranks:
        pairs = [
            (ranks[piece[:cut]], ranks[piece[cut:]], cut)
            for cut in range(1, len(piece))
            if piece[:cut] in ranks and piece[cut:] in ranks
        ]
        for _, _, cut in sorted(pairs):
            yield piece[:cut], piece[cut:]


def _letters() -> dict[int, str]:
    """GPT-2's table."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in shown)
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + index) for index, byte in enumerate(others)}


LETTERS = _letters()  # byte -> what stands for it in the library's byte-level models


def _spell(piece: bytes) -> str:
    return piece.decode("latin-1").translate(LETTERS)
