"""Qwen2.5-VL's language model as OmniGen2's text encoder.

No picture ever reaches it, and of a text all three rotary positions of a token are the same: then its language model is
Qwen2, to the bit (measured against ``Qwen2_5_VLForConditionalGeneration`` in float32 and bfloat16). So that is what is
loaded, under names that every transformers since 4.50 has, and neither the vision tower nor torchvision is needed.

The rotary frequencies are rounded to the run's dtype: AI Toolkit and ai-toolkit-inference both cast the whole module,
its buffers too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from ...errors import FileError
from ...handle import Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...sources.source import Source, check_complete
from ..runtime import Embedding, Text

_MODEL_TYPE = "qwen2_5_vl"
# of the whole model; the names are the file's, or those without the first step
_UNUSED = ("visual.", "lm_head.", "rotary_emb.")
# what the language model's configuration has in common with Qwen2's; texts never fill the window of sliding attention
_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout", "pad_token_id",
)  # fmt: skip
Tokenize = Callable[[str], list[int]]


class QwenTextEncoder(nn.Module):
    """Tokenizer and language model; returns the last hidden state, which is normed."""

    def __init__(self, tokenize: Tokenize, model: Qwen2Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokenize = tokenize
        self.model = model
        self.run_dtype = dtype
        for name, buffer in model.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.to(dtype).to(buffer.dtype))

    def forward(self, text: Text, device: str) -> Embedding:
        tokens = self.tokenize(text.text)
        kept = tokens[: text.length]
        # a tokenizer may know more than the encoder, as long as the text does not need it
        largest, known = max(kept), self.model.config.vocab_size
        if largest >= known:
            raise FileError(
                f"The tokenizer does not belong to the text encoder: it gives token {largest}, and the encoder knows "
                f"{known}. Download both from one repository."
            )
        ids = torch.tensor([kept], device=device)
        mask = torch.ones_like(ids)
        embeds = self.model(ids, attention_mask=mask, use_cache=False).last_hidden_state.to(self.run_dtype)
        return Embedding(embeds.cpu(), mask.cpu(), len(tokens) - len(kept))


def check_files(source: Source) -> None:
    """Raises FileError where the text encoder or its tokenizer is missing, incomplete, or no Qwen2.5-VL."""
    found = source.config().get("model_type")
    if found != _MODEL_TYPE:
        _refuse(source.name, f"is a {found!r} model, not {_MODEL_TYPE}")
    if source.tokenizer() is None:
        _refuse(source.name, f"has no tokenizer: {source.tokenizer_name} is missing")
    check_complete(source, parameter_shapes(empty(source)), _UNUSED)


def load(source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]) -> QwenTextEncoder:
    """Loads tokenizer and language model to the CPU; ``check`` raises to interrupt."""
    tokenize = load_tokenizer(source)
    model = empty(source)
    tensors = source.read(parameter_shapes(model))
    where = f"{source.name} text_encoder"
    return QwenTextEncoder(tokenize, fill(model, tensors, dtype, where, check, quantization=quantization), dtype)


def load_tokenizer(source: Source) -> Tokenize:
    """Text to ids, as many as it needs, from a folder's ``tokenizer.json`` or the one in a file; raises FileError.

    Not through transformers: before 5.0 it cannot read the configurations that 5.0 and later write.
    """
    found = source.tokenizer()
    if found is None:
        _refuse(source.name, f"has no tokenizer: {source.tokenizer_name} is missing")
    try:
        tokenizer = Tokenizer.from_buffer((found / "tokenizer.json").read_bytes() if isinstance(found, Path) else found)
    except Exception as error:
        # the library raises nothing narrower
        reason = str(error).splitlines()[0][:200]
        raise FileError(f"The tokenizer of {source.name!r} cannot be used ({reason}). Download it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A Qwen2.5-VL's configuration -> Qwen2's.

    The language model's keys stand at the top before transformers 4.52, and under ``text_config`` since; the base of
    the rotary frequencies is ``rope_theta``, since 5.0 among the ``rope_parameters``.
    """
    text = {**config, **(config.get("text_config") or {})}
    rotary = text.get("rope_parameters") or {}
    own = {key: text[key] for key in _KEYS if key in text}
    theta = rotary.get("rope_theta", text.get("rope_theta", 1e6))
    return own | {"rope_theta": theta, "use_sliding_window": False, "sliding_window": None}


def empty(source: Source) -> Qwen2Model:
    """The language model with shapes but without storage; raises FileError."""
    return build_empty(
        lambda: Qwen2Model(Qwen2Config.from_dict(language_config(source.config()))),
        f"{source.config_name} of {source.name!r}",
    )


def _refuse(name: str, why: str) -> NoReturn:
    raise FileError(f"The text encoder of {name!r} {why}. OmniGen2 needs Qwen2.5-VL 3B.")
