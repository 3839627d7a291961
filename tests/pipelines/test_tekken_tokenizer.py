"""Mistral's tokenizer from tekken.json: the ids of the fast tokenizer, and of transformers' own conversion."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny.tekken import RELEASED_PATTERN, SPECIAL_TOKENS, make_tekken, write_tokenizer
from comfyui_aitk.pipelines.errors import FileError
from comfyui_aitk.pipelines.parts.tokenizers.tekken import LETTERS, TekkenTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

SYSTEM = "You are an AI that reasons about image descriptions.\nYou give structured responses"
MARKS = "नमस्ते สวัสดี e\u0301te\u0301"  # words of one pattern and not of the other
TEXTS = (
    st.text(max_size=40)
    | st.text("aenorst  \n\t'1029,.-[]</>üß🦊", max_size=60)
    | st.lists(st.sampled_from([*SPECIAL_TOKENS, "<SPECIAL_31>", "<SPECIAL_32>", " a red fox", "  ", "\n", MARKS])).map(
        "".join
    )
)


@pytest.fixture(scope="module")
def tiny() -> TekkenTokenizer:
    return TekkenTokenizer(make_tekken(), "tiny")


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(write_tokenizer(tmp_path_factory.mktemp("fast"))))


@settings(max_examples=300)
@given(TEXTS)
@example("<s>[INST]a[/INST]</s>")
@example("")
@example(SYSTEM + "   \r\n\r\n  1000 forêts 🦊🦊🌲")
def test_it_gives_the_fast_tokenizer_s_ids(tiny, fast, text):
    assert tiny(text) == fast(text, add_special_tokens=False).input_ids
    assert [tiny.bos_id, *tiny(text)] == fast(text).input_ids


def test_ids_are_those_of_the_release(tiny, fast):
    assert (tiny.bos_id, tiny.pad_id) == (1, 11) == (fast.bos_token_id, fast.pad_token_id)
    assert tiny("[INST][/INST][SYSTEM_PROMPT][/SYSTEM_PROMPT]<unk></s>") == [3, 4, 17, 18, 0, 2]
    # a byte's id is its value after the special tokens, and the vocabulary's end is cut off
    assert tiny("~\x00") == [32 + ord("~"), 32]
    content = json.loads(make_tekken())
    last = base64.b64decode(content["vocab"][-1]["token_bytes"]).decode()
    assert len(tiny(last)) > 1
    assert max(tiny(SYSTEM)) > 32 + 256, "some merges are used"
    assert set(LETTERS.values()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_the_template_gives_one_bos_and_the_markers(tiny, fast):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": "a red fox"},
    ]
    text = fast.apply_chat_template(messages, tokenize=False)
    assert text == f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]a red fox[/INST]"
    given = fast.apply_chat_template(messages, tokenize=True, return_dict=True, padding="max_length", max_length=99)
    ids = tiny(text)
    assert given["input_ids"] == [tiny.pad_id] * (99 - len(ids)) + ids


def test_transformers_conversion_gives_the_same(tiny, tmp_path):
    convert = pytest.importorskip("transformers.integrations.mistral.tokenizer").MistralConverter
    path = tmp_path / "tekken.json"
    path.write_bytes(_config(pattern=RELEASED_PATTERN))
    converted = convert(str(path)).converted()
    texts = [
        SYSTEM,
        *SPECIAL_TOKENS,
        "  two  spaces\n\n\nand\tothers 12345 ",
        "ÀÉ 🦊\u200d🌲 [INST] x",
        "<s>" * 3,
        MARKS,
    ]
    for text in texts:
        assert tiny(text) == converted.encode(text, add_special_tokens=False).ids, text


def _large(size: int) -> bytes:
    """A large vocabulary: each string is the sum of two before it, 12 bytes at most."""
    choose = random.Random(0)
    content = json.loads(make_tekken())
    pieces = dict.fromkeys(bytes([byte]) for byte in range(256))
    known = list(pieces)
    while len(known) < size:
        piece = choose.choice(known) + choose.choice(known)
        if len(piece) <= 12 and piece not in pieces:
            pieces[piece] = None
            known.append(piece)
    content["vocab"] = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for rank, piece in enumerate(known)
    ]
    content["config"]["default_vocab_size"] = size + 32
    return json.dumps(content).encode()


def test_the_time_to_make_it_grows_with_the_vocabulary_alone():
    """Measured: 3 s of one core with the release's 130,072 strings, below one here; all pairs would take minutes."""
    model = _large(20_000)
    start = time.process_time()
    tokenizer = TekkenTokenizer(model, "large")
    assert time.process_time() - start < 10
    assert len(tokenizer("some words")) <= 10


def _changed(**changes: object) -> bytes:
    return json.dumps(json.loads(make_tekken()) | changes).encode()


def _config(**changes: object) -> bytes:
    return _changed(config=json.loads(make_tekken())["config"] | changes)


def _vocab() -> list[dict]:
    return json.loads(make_tekken())["vocab"]


def _special(*left_out: str) -> list[dict]:
    return [entry for entry in json.loads(make_tekken())["special_tokens"] if entry["token_str"] not in left_out]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"\x00\xff", "it is no tekken.json"),
        (make_tekken()[:-9], "it is no tekken.json (JSONDecodeError"),
        (b"[1]", "it is no tekken.json (TypeError"),
        (b"[" * 100_000, "it is no tekken.json (RecursionError"),
        (_changed(special_tokens=None), "it is no tekken.json (TypeError"),
        (b'{"config": {}, "vocab": []}', "it is no tekken.json (KeyError)"),
        (_changed(config=[]), "it is no tekken.json (AttributeError"),
        (_changed(vocab=[{"rank": 0}]), "it is no tekken.json (KeyError)"),
        (_changed(vocab=[{"rank": 0, "token_bytes": "?"}]), "it is no tekken.json (Error)"),
        (_changed(vocab=_vocab()[::-1]), "the ranks of its vocabulary are not 0, 1, 2"),
        (_changed(vocab=_vocab()[:100]), "some bytes have no token in it"),
        (_config(default_vocab_size=100), "some bytes have no token in it"),
        (_config(default_num_special_tokens=10**9), "1000000000 special tokens"),
        (_config(default_vocab_size=1e999), "it is no tekken.json (OverflowError"),
        (_changed(special_tokens=_special("<pad>")), "its special tokens are not 32 with <s> and <pad> among them"),
        (_changed(special_tokens=[{"rank": 0, "token_str": "<s>"}]), "its special tokens are not 32 with"),
    ],
)
def test_damaged_files(model, message):
    with pytest.raises(FileError) as caught:
        TekkenTokenizer(model, "mistral.safetensors")
    assert str(caught.value).startswith("The tokenizer in 'mistral.safetensors' is damaged: ")
    assert message in str(caught.value), str(caught.value)


def test_the_tiny_files_are_the_same_every_time(tmp_path: Path):
    make_tekken.cache_clear()
    first = make_tekken()
    make_tekken.cache_clear()
    assert make_tekken() == first
    one, two = (write_tokenizer(tmp_path / name) for name in ("one", "two"))
    assert (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()
