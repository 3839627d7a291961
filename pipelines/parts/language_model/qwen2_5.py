"""Qwen2.5-VL's language model as a text encoder that sees no pictures.

Of a text all three rotary positions of a token are the same: then its language model is Qwen2, to the bit (measured
against ``Qwen2_5_VLForConditionalGeneration`` in float32 and bfloat16). So that is what is loaded, under names that
every transformers since 4.50 has, and neither the vision tower nor torchvision is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as FastTokenizer
from transformers import Qwen2Config, Qwen2Model

from ...errors import FileError
from ..tokenizers.folder import FolderTokenizer
from .encoder import with_sdpa

if TYPE_CHECKING:
    from ...weights.source import Source
    from .encoder import Tokenizer

# of the whole model; the names are the file's, or those without the first step
UNUSED = ("visual.", "lm_head.", "rotary_emb.")
# what the language model's configuration has in common with Qwen2's; texts never fill the window of sliding attention
_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout", "pad_token_id",
)  # fmt: skip


class _FastTokenizer:
    pad_id = 0  # texts are not padded
    pad_left = False

    def __init__(self, tokenizer: FastTokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def __call__(self, text: str, settings: Any) -> list[int]:
        return self._tokenizer.encode(text).ids


def load_tokenizer(source: Source) -> Tokenizer:
    """From a folder's ``tokenizer.json`` or the one in a file; raises FileError.

    Not through transformers: before 5.0 it cannot read the configurations that 5.0 and later write. A folder that has
    vocabulary and merges alone, as older ones do, is read by it.
    """
    found = source.tokenizer()
    if found is None:
        raise FileError(f"{source.name!r} has no tokenizer: {source.tokenizer_name} is missing. Download it again.")
    if isinstance(found, Path) and not (found / "tokenizer.json").is_file():
        return _FastTokenizer(FolderTokenizer(found, source.name).tokenizer.backend_tokenizer)
    try:
        content = (found / "tokenizer.json").read_bytes() if isinstance(found, Path) else found
        tokenizer = FastTokenizer.from_buffer(content)
    except Exception as error:
        # the library raises nothing narrower, and its text repeats the file
        reason = type(error).__name__
        raise FileError(f"The tokenizer of {source.name!r} cannot be used ({reason}). Download it again.") from error
    return _FastTokenizer(tokenizer)


def make(config: Mapping[str, Any]) -> Qwen2Model:
    own = {key: config[key] for key in _KEYS if key in config}
    own |= {"rope_theta": config.get("rope_theta", 1e6), "use_sliding_window": False, "sliding_window": None}
    return Qwen2Model(with_sdpa(Qwen2Config.from_dict(own)))
