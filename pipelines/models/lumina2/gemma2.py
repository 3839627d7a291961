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
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from ...checkpoint import Checkpoint
from ...errors import FileError
from ...handle import Quantization
from ...loading import build_empty, fill, parameter_shapes
from ..runtime import Embedding, Text

# of a Gemma2ForCausalLM checkpoint, or one of an older transformers; a Gemma2Model has neither
_PREFIX = "model."
_SURPLUS = ("lm_head.", "rotary_emb.")


@dataclass(frozen=True)
class Gemma2Settings:
    """What changes an embedding besides the text.

    Attributes:
        softcap: attention logits become softcap * tanh(logits / softcap); None leaves them.
        cast_rope: whether the rotary frequencies are rounded to the run's dtype.
    """

    softcap: float | None
    cast_rope: bool


class Gemma2TextEncoder(nn.Module):
    """Tokenizer and encoder; returns the hidden states before the last layer."""

    def __init__(self, tokenizer: Any, model: Gemma2Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        self.run_dtype = dtype
        self._attention = str(model.config._attn_implementation)
        # kept apart: the buffers in the model are overwritten
        self._frequencies = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}

    def configure(self, settings: Gemma2Settings) -> None:
        """Makes the next call use these settings."""
        implementation = self._attention if settings.softcap is None else "eager"
        # every layer reads it there on every call; the public setter is missing before transformers 4.53
        self.model.config._attn_implementation = implementation
        for layer in self.model.layers:
            cast(Any, layer).self_attn.attn_logit_softcapping = settings.softcap
        for name, exact in self._frequencies.items():
            value = exact.to(self.run_dtype).to(exact.dtype) if settings.cast_rope else exact
            self.model.get_buffer(name).copy_(value)

    def forward(self, text: Text, device: str) -> Embedding:
        tokens = self.tokenizer(
            text.text, padding="max_length", max_length=text.length, truncation=True, return_tensors="pt"
        )
        # a tokenizer may know more than the encoder, as long as the text does not need it
        largest, known = int(tokens.input_ids.max()), self.model.config.vocab_size
        if largest >= known:
            raise FileError(
                f"The tokenizer does not belong to the text encoder: it gives token {largest}, and the encoder knows "
                f"{known}. Download both from one repository."
            )
        whole = len(self.tokenizer(text.text).input_ids)
        mask = tokens.attention_mask.to(device)
        output = self.model(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=True)
        embeds = output.hidden_states[-2].to(self.run_dtype)
        return Embedding(embeds.cpu(), mask.cpu(), max(0, whole - text.length))


def check_files(checkpoint: Checkpoint) -> None:
    """Raises FileError where the text encoder or its tokenizer is missing, incomplete, or no Gemma2."""
    config = checkpoint.config("text_encoder")
    if config.get("model_type") != "gemma2":
        _refuse(checkpoint, f"is a {config.get('model_type')!r} model, not gemma2")
    if not any((checkpoint.folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        _refuse(checkpoint, "has no tokenizer: tokenizer/tokenizer.json is missing")
    expected = parameter_shapes(_empty(checkpoint))
    checkpoint.check_complete("text_encoder", expected, _PREFIX, _SURPLUS)


def load(
    checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
) -> Gemma2TextEncoder:
    """Loads tokenizer and encoder to the CPU; ``check`` raises to interrupt."""
    tokenizer = _tokenizer(checkpoint)
    tensors = checkpoint.read("text_encoder", checkpoint.tensor_infos("text_encoder"))
    where = f"{checkpoint.name} text_encoder"
    model = fill(_empty(checkpoint), tensors, dtype, where, check, quantization=quantization, prefix=_PREFIX)
    return Gemma2TextEncoder(tokenizer, model, dtype)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.folder / "tokenizer"), local_files_only=True)
    except Exception as error:
        # the library's exceptions for a damaged file are of every kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FileError(
            f"The tokenizer of {checkpoint.name!r} cannot be used ({reason}). Download it again."
        ) from error
    if tokenizer.pad_token_id is None:
        _refuse(checkpoint, "has a tokenizer without a padding token")
    tokenizer.padding_side = "right"
    return tokenizer


def _empty(checkpoint: Checkpoint) -> Gemma2Model:
    folder = str(checkpoint.folder / "text_encoder")
    # not AutoModel.from_config, which makes the buffers in the dtype of the file's config: a bfloat16 embed_scale in a
    # float32 run moves the embeddings by 2e-3
    config = f"text_encoder/config.json of {checkpoint.name!r}"
    return build_empty(lambda: Gemma2Model(Gemma2Config.from_pretrained(folder, local_files_only=True)), config)


def _refuse(checkpoint: Checkpoint, why: str) -> None:
    raise FileError(f"The text encoder of {checkpoint.name!r} {why}. Lumina Image 2.0 needs Gemma2 2B.")
