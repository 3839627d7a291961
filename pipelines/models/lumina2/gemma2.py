"""Gemma2 as Lumina2's text encoder.

Differences from calling the library's model as it comes, each of which changes embeddings:

* The tokenizer pads on the right. Gemma's own default is left, and the transformer takes the first tokens.
* Soft-capping of the attention logits is set here on every call. Which one a plain model does depends on the version of
  transformers: 5.5 runs SDPA without it, 5.23 eager attention with it.
* The rotary frequencies can be rounded to the run's dtype. AI Toolkit casts the whole module, its buffers too, which in
  bfloat16 turns 0.1 into 0.10009765625 and moves every later position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import torch
from torch import nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from ...errors import FileError
from ...handle import Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...parts.sentencepiece_tokenizer import SentencePieceTokenizer
from ...sources.source import Source, check_complete
from ..runtime import Embedding, Text

# of a Gemma2ForCausalLM checkpoint, or one of an older transformers; a Gemma2Model has neither
_SURPLUS = ("lm_head.", "rotary_emb.")


@dataclass(frozen=True)
class Gemma2Settings:
    """What changes an embedding besides the text.

    Attributes:
        softcap: attention logits become softcap * tanh(logits / softcap); None leaves them.
        cast_rope: whether the rotary frequencies are rounded to the run's dtype.
        sdpa: whether attention without soft-capping runs SDPA; else as the library does by itself.
    """

    softcap: float | None
    cast_rope: bool
    sdpa: bool = False


class Tokenizer(Protocol):
    """Text to ids with a leading ``<bos>``, as many as it needs."""

    pad_id: int

    def __call__(self, text: str) -> list[int]: ...


class Gemma2TextEncoder(nn.Module):
    """Tokenizer and encoder; returns the hidden states before the last layer."""

    def __init__(self, tokenizer: Tokenizer, model: Gemma2Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        self.run_dtype = dtype
        self._attention = str(model.config._attn_implementation)
        # kept apart: the buffers in the model are overwritten
        self._frequencies = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}

    def configure(self, settings: Gemma2Settings) -> None:
        """Makes the next call use these settings."""
        implementation = "sdpa" if settings.sdpa else self._attention
        if settings.softcap is not None:
            implementation = "eager"
        # every layer reads it there on every call; the public setter is missing before transformers 4.53
        self.model.config._attn_implementation = implementation
        for layer in self.model.layers:
            cast(Any, layer).self_attn.attn_logit_softcapping = settings.softcap
        for name, exact in self._frequencies.items():
            value = exact.to(self.run_dtype).to(exact.dtype) if settings.cast_rope else exact
            self.model.get_buffer(name).copy_(value)

    def forward(self, text: Text, device: str) -> Embedding:
        tokens = self.tokenizer(text.text)
        # a tokenizer may know more than the encoder, as long as the text does not need it
        largest, known = max(tokens[: text.length]), self.model.config.vocab_size
        if largest >= known:
            raise FileError(
                f"The tokenizer does not belong to the text encoder: it gives token {largest}, and the encoder knows "
                f"{known}. Download both from one repository."
            )
        kept = tokens[: text.length]
        padding = text.length - len(kept)
        ids = torch.tensor([kept + [self.tokenizer.pad_id] * padding])
        mask = torch.tensor([[1] * len(kept) + [0] * padding], device=device)
        output = self.model(ids.to(device), attention_mask=mask, output_hidden_states=True)
        embeds = output.hidden_states[-2].to(self.run_dtype)
        return Embedding(embeds.cpu(), mask.cpu(), len(tokens) - len(kept))


class _FolderTokenizer:
    """What AutoTokenizer makes of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            # the library's exceptions for a damaged file are of every kind
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise FileError(f"The tokenizer of {name!r} cannot be used ({reason}). Download it again.") from error
        pad: int | None = self._tokenizer.pad_token_id  # pyright: ignore
        if pad is None:
            _refuse(name, "has a tokenizer without a padding token")
        self.pad_id = pad

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer(text).input_ids


def check_files(source: Source) -> None:
    """Raises FileError where the text encoder or its tokenizer is missing, incomplete, or no Gemma2."""
    config = source.config()
    if config.get("model_type") != "gemma2":
        _refuse(source.name, f"is a {config.get('model_type')!r} model, not gemma2")
    if source.tokenizer() is None:
        _refuse(source.name, f"has no tokenizer: {source.tokenizer_name} is missing")
    check_complete(source, parameter_shapes(empty(source)), _SURPLUS)


def load(
    source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
) -> Gemma2TextEncoder:
    """Loads tokenizer and encoder to the CPU; ``check`` raises to interrupt."""
    tokenizer = load_tokenizer(source)
    tensors = source.read(source.tensor_infos())
    where = f"{source.name} text_encoder"
    model = fill(empty(source), tensors, dtype, where, check, quantization=quantization)
    return Gemma2TextEncoder(tokenizer, model, dtype)


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a folder, or of a sentencepiece model; raises FileError."""
    found = source.tokenizer()
    if isinstance(found, Path):
        return _FolderTokenizer(found, source.name)
    return SentencePieceTokenizer(found or b"", source.name)


def empty(source: Source) -> Gemma2Model:
    """The encoder with shapes but without storage; raises FileError."""
    # not AutoModel.from_config, which makes the buffers in the dtype of the file's config: a bfloat16 embed_scale in a
    # float32 run moves the embeddings by 2e-3
    return build_empty(
        lambda: Gemma2Model(Gemma2Config.from_dict(source.config())), f"{source.config_name} of {source.name!r}"
    )


def _refuse(name: str, why: str) -> NoReturn:
    raise FileError(f"The text encoder of {name!r} {why}. Lumina Image 2.0 needs Gemma2 2B.")
