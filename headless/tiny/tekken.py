"""A tiny tokenizer with Mistral's traits in both shapes: ``tekken.json``, and the fast one with the same ids."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ...pipelines.parts.tokenizers.tekken import LETTERS

_LEARNED = 200
# what tekken.json says of words: letters with the mark before them and capitals first, single digits, signs, line ends
_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what the released tokenizer.json says instead: Llama 3's
RELEASED_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# the first of Mistral Small 3.1, at their ids
SPECIAL_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_COUNT = 32  # with those that have no name: 1000 in the release
_PADDING = 5  # strings beyond the vocabulary's size, which the release has too
_CORPUS = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object",
    "relationships, object\nattribution and actions without speculation.",
    "a photo of a red fox in the snow, morning light",
    "a painting of a cat, 1000 brush strokes\n\n    by the sea",
    "ein schöner grüner Frosch überm Fluß, été à la forêt; 🦊🦊 🌲🌲 рыжая лиса नमस्ते नमस्ते สวัสดี สวัสดี",
)
# a system prompt's and a user's message, whose content is a text or a list with one
_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- set text = message['content'] if message['content'] is string else message['content'][0]['text'] %}"
    "{%- if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + text + '[/INST]' }}{%- endif %}{%- endfor %}"
)


@lru_cache(maxsize=1)
def make_tekken() -> bytes:
    """A tekken.json, the same bytes at every call: what ComfyUI's text encoder files embed as ``tekken_model``."""
    pieces = [bytes([byte]) for byte in range(256)] + _learned()
    vocab = [
        {
            "rank": rank,
            "token_bytes": base64.b64encode(piece).decode(),
            "token_str": None if b"\xff" in piece else piece.decode("utf-8", "replace"),
        }
        for rank, piece in enumerate(pieces)
    ]
    config = {
        "pattern": _PATTERN,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": _COUNT + len(vocab) - _PADDING,
        "default_num_special_tokens": _COUNT,
        "version": "v7",
    }
    special = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(_special())]
    return json.dumps({"config": config, "vocab": vocab, "special_tokens": special}).encode()


def write_tokenizer(folder: Path) -> Path:
    """Writes the same as a folder that AutoTokenizer reads, which puts ``<s>`` in front of a text; returns the folder.

    The files are those of the release: ``tokenizer.json`` and ``tokenizer_config.json``, with the chat template in it.
    """
    vocab = json.loads(make_tekken())["vocab"][:-_PADDING]
    ids = {token: index for index, token in enumerate(_special())}
    pieces = {_spelled(base64.b64decode(entry["token_bytes"])): entry["rank"] + _COUNT for entry in vocab}
    tokenizer = Tokenizer(models.BPE(vocab=ids | pieces, merges=list(_merges(pieces)), ignore_merges=True))
    tokenizer.pre_tokenizer = _words(RELEASED_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ids])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "padding_side": "left",
        "model_max_length": 10**30,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return folder


def _special() -> Iterator[str]:
    yield from SPECIAL_TOKENS
    for token in range(len(SPECIAL_TOKENS), _COUNT):
        yield f"<SPECIAL_{token}>"


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _spelled(piece: bytes) -> str:
    return "".join(LETTERS[byte] for byte in piece)


def _learned() -> list[bytes]:
    """Strings of two bytes and more, in the order in which they were learned."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _words(_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + _LEARNED, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    ids, bytes_of = tokenizer.get_vocab(), {letter: byte for byte, letter in LETTERS.items()}
    return [
        bytes(bytes_of[letter] for letter in piece) for piece in sorted(ids, key=lambda p: ids[p]) if len(piece) > 1
    ]


def _merges(pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order of the three ids."""
    pairs = [
        (token, pieces[piece[:cut]], pieces[piece[cut:]], cut, piece)
        for piece, token in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(piece[:cut], piece[cut:]) for *_, cut, piece in sorted(pairs)]
