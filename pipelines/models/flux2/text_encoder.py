"""FLUX.2's text encoders: a prompt to 512 rows of three hidden states side by side, padding included.

No mask reaches the transformer, which attends to all 512 rows: those of the padding matter as well. They are what
SDPA makes of rows that see nothing; transformers 4.57, 5.5 and 5.23 agree on them to the bit, and eager attention does
not, so SDPA is set here and not inherited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import nn

from ...errors import FileError
from ...handle import Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...sources.source import Source, check_complete
from ..runtime import Embedding, Text
from .text_files import TextEncoderFacts
from .tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TextSettings:
    """What changes an embedding besides the prompt.

    Attributes:
        system_message: of Mistral's template; empty for Qwen3, whose template has none.
        cast_rope: whether the rotary frequencies are rounded to the run's dtype.
    """

    system_message: str
    cast_rope: bool


class Flux2TextEncoder(nn.Module):
    """Tokenizer and the lower layers of a language model."""

    def __init__(
        self, facts: TextEncoderFacts, tokenizer: Tokenizer, model: nn.Module, dtype: torch.dtype, name: str
    ) -> None:
        super().__init__()
        self.facts = facts
        self.tokenizer = tokenizer
        self.model = model
        self.run_dtype = dtype
        self._name = name
        # kept apart: the buffers in the model are overwritten
        self._frequencies = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}

    def forward(self, text: Text, device: str) -> Embedding:
        settings = text.settings
        assert isinstance(settings, TextSettings)
        for name, exact in self._frequencies.items():
            value = exact.to(self.run_dtype).to(exact.dtype) if settings.cast_rope else exact
            self.model.get_buffer(name).copy_(value)
        tokens = self.tokenizer(text.text, settings.system_message)
        known = cast(nn.Embedding, self.model.get_submodule("embed_tokens")).num_embeddings
        if max(tokens) >= known:
            raise FileError(
                f"The tokenizer does not belong to the text encoder of {self._name!r}: it gives token {max(tokens)}, "
                f"and the encoder knows {known}. Download both from one repository."
            )
        kept = tokens[: text.length]
        padding = text.length - len(kept)
        ids, mask = [self.tokenizer.pad_id] * padding, [0] * padding
        ids = ids + kept if self.tokenizer.pad_left else kept + ids
        mask = mask + [1] * len(kept) if self.tokenizer.pad_left else [1] * len(kept) + mask
        attention_mask = torch.tensor([mask], device=device)
        output = self.model(
            torch.tensor([ids], device=device),
            attention_mask=attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        states = [output.hidden_states[index] for index in self.facts.hidden_states]
        embeds = torch.cat(states, dim=-1).to(self.run_dtype)
        return Embedding(embeds.cpu(), attention_mask.cpu(), len(tokens) - len(kept))


def check_files(facts: TextEncoderFacts, source: Source) -> None:
    """Raises FileError where the text encoder or its tokenizer is missing, incomplete, or another one."""
    config = source.config()
    if config.get("model_type") != facts.model_type:
        _refuse(facts, source, f"is a {config.get('model_type')!r} model, not {facts.model_type}")
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or layers < facts.layers:
        _refuse(facts, source, f"has {layers} layers, and {facts.layers} are needed")
    if source.tokenizer() is None:
        _refuse(facts, source, f"has no tokenizer: {source.tokenizer_name} is missing")
    check_complete(source, parameter_shapes(empty(source)), ("rotary_emb.",))


def load(
    facts: TextEncoderFacts, source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
) -> Flux2TextEncoder:
    """Loads tokenizer and encoder to the CPU; ``check`` raises to interrupt."""
    tokenizer = load_tokenizer(facts, source)
    tensors = source.read(source.tensor_infos())
    where = f"{source.name} text_encoder"
    model = fill(empty(source), tensors, dtype, where, check, quantization=quantization)
    return Flux2TextEncoder(facts, tokenizer, model, dtype, source.name)


def empty(source: Source) -> nn.Module:
    """The language model with shapes but without storage; raises FileError."""
    return build_empty(lambda: _language_model(source.config()), f"{source.config_name} of {source.name!r}")


def _language_model(config: dict[str, Any]) -> nn.Module:
    from transformers import MistralConfig, MistralModel, Qwen3Config, Qwen3Model

    make_config, make = {"mistral": (MistralConfig, MistralModel), "qwen3": (Qwen3Config, Qwen3Model)}[
        config["model_type"]
    ]
    settings = make_config.from_dict(config)
    settings._attn_implementation = "sdpa"
    model = make(settings)
    # the last hidden state is read before it
    model.norm = nn.Identity()
    return model


def _refuse(facts: TextEncoderFacts, source: Source, why: str) -> NoReturn:
    raise FileError(f"The text encoder of {source.name!r} {why}. This model needs {facts.title}.")
