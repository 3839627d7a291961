"""Tiny tokenizers with Qwen2.5's traits: byte-level BPE, its special tokens, its words, its normalisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# of Qwen2.5's tokenizer.json
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(corpus: Sequence[str], special: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer, the same at every call.

    Args:
        corpus: what its words are learned from; each of them becomes a token of its own where there is room.
        special: the special tokens, which are the first ids, in this order.
        vocabulary: how many tokens there are at most.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, special: Sequence[str], *, slow: bool = False) -> Path:
    """Writes a tokenizer as transformers saves it; returns the folder.

    Args:
        folder: made where it is missing.
        tokenizer: of :func:`make_tokenizer`.
        special: its special tokens: padding first, the end of a text third.
        slow: whether in place of ``tokenizer.json`` vocabulary and merges are written, as Qwen-Image's repository has
            them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": list(special[1:]),
        "bos_token": None,
        "eos_token": special[2],
        "model_max_length": 131072,
        "pad_token": special[0],
        "padding_side": "right",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if slow:
        tokenizer.model.save(str(folder))
        config["added_tokens_decoder"] = {
            str(tokenizer.token_to_id(token)): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": True,
            }
            for token in special
        }  # fmt: skip
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return folder
