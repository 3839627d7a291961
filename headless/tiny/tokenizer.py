"""A tiny tokenizer with Gemma's traits in both shapes: sentencepiece's model, and the fast one with the same ids."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from ...pipelines.models.lumina2.recipes import PROMPT_MARKER, SYSTEM_PROMPT

_VOCABULARY = 480
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")  # Gemma's ids 0 to 3
USER_DEFINED = ("<mask>", "<2mass>", "\n\n")  # Gemma has these among its own
# the merges are learned from the system prompt, so that it leaves room for a prompt in 256 tokens
_CORPUS = (SYSTEM_PROMPT + PROMPT_MARKER, "a photo of a red fox in the snow, morning light", "a painting of a cat")


@lru_cache(maxsize=1)
def make_sentencepiece() -> bytes:
    """A byte-fallback BPE model file, the same bytes at every call: what single files embed as ``spiece_model``."""
    pad, eos, bos, unk = SPECIAL_TOKENS
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_writer=file,
        model_type="bpe",
        vocab_size=_VOCABULARY,
        hard_vocab_limit=False,
        max_sentencepiece_length=16,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=list(USER_DEFINED),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=pad,
        eos_piece=eos,
        bos_piece=bos,
        unk_piece=unk,
        # the same model every time, and no word of it on the console
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return file.getvalue()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The same as transformers' fast tokenizer: ``<bos>`` and then sentencepiece's ids.

    They are equal for every text but one that spells a special token, which only this one takes for the token.
    """
    pieces = SentencePieceProcessor(model_proto=make_sentencepiece())
    vocabulary = {pieces.id_to_piece(token): token for token in range(len(pieces))}
    pad, eos, bos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=list(_merges(pieces, vocabulary)), unk_token=unk, fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # without normalization, or a marker of spaces in front of them would be searched for in the text
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in USER_DEFINED])
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        unk_token=unk,
        padding_side="left",  # Gemma's; a model that wants the other side has to say so
    )


def _merges(pieces: SentencePieceProcessor, vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every pair whose sum is a learned piece, the best piece first: the order in which sentencepiece joins them."""
    learned = [
        token
        for token in range(len(pieces))
        if not (pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_byte(token))
        and pieces.id_to_piece(token) not in USER_DEFINED
    ]
    for token in sorted(learned, key=lambda token: (-pieces.get_score(token), token)):
        piece = pieces.id_to_piece(token)
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        yield from sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
