"""Qwen3-VL's language model as a text encoder that sees no pictures, with a template of which the start is cut off.

Of a text all three rotary positions of a token are the same: then its language model is Qwen3, to the bit. So that is
what is loaded, under names that every transformers since 4.51 has, and neither the vision tower nor torchvision is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from ..encoder import Embedding, Text
from .encoder import EncoderSettings, LanguageModel, LoadedLanguageModel, with_sdpa
from .qwen2_5 import load_tokenizer

if TYPE_CHECKING:
    from ...weights.source import Source
    from .encoder import Tokenizer
    from .files import LanguageModelFiles

# of the whole model; the names are the file's, or those without the first step
UNUSED = ("visual.", "lm_head.", "rotary_emb.")
# what the language model's configuration has in common with Qwen3's
KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout", "attention_bias",
    "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class TemplateSettings(EncoderSettings):
    """What changes an embedding besides the text.

    Attributes:
        before: stands before the text.
        after: stands behind it, with tokens of its own: a text that is cut keeps them.
        dropped: how many tokens at the start the encoder sees and the embedding lacks. A text's length counts without
            them and without ``after``.
    """

    before: str = ""
    after: str = ""
    dropped: int = 0


class Qwen3Vl(LanguageModel):
    """Qwen3-VL as the part ``text_encoder``: texts at their own length, without padding.

    Args:
        files: what its files look like.
        states: see :class:`.encoder.LanguageModel`.
        needs: see :class:`.encoder.LanguageModel`.
        network: see ``make`` of :class:`.encoder.LanguageModel`; None is a language model that sees no pictures.
        load_tokenizer: see :class:`.encoder.LanguageModel`.
    """

    def __init__(
        self,
        files: LanguageModelFiles,
        *,
        states: Sequence[int],
        needs: str,
        network: Callable[[Mapping[str, Any]], nn.Module] | None = None,
        load_tokenizer: Callable[[Source], Tokenizer] = load_tokenizer,
    ) -> None:
        super().__init__(
            "text_encoder",
            files,
            network or make,
            load_tokenizer,
            states=states,
            padded=False,
            needs=needs,
            surplus=UNUSED,
        )

    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        assert isinstance(module, LoadedLanguageModel) and isinstance(text.settings, TemplateSettings)
        self._configure(module, text)
        most = text.length + text.settings.dropped
        tokens = self._tokens(module, text, text.settings.before + text.text, most)
        ids = torch.tensor([[*tokens[:most], *self._ending(module, text)]], device=device)
        found = module.hidden_states(ids, torch.ones_like(ids))
        return self._embedding(module, found, text.settings, cut=max(0, len(tokens) - most))

    def _tokens(self, module: LoadedLanguageModel, text: Text, whole: str, most: int | None = None) -> list[int]:
        """The ids of a text with its template, of which ``most`` are kept."""
        return module.tokens(replace(text, text=whole, length=len(whole) if most is None else most))

    def _ending(self, module: LoadedLanguageModel, text: Text) -> list[int]:
        """The ids of what stands behind a text."""
        return self._tokens(module, text, text.settings.after)

    def _embedding(
        self, module: LoadedLanguageModel, found: Sequence[torch.Tensor], settings: TemplateSettings, cut: int
    ) -> Embedding:
        """The states that are read, side by side, without the template's start."""
        embeds = torch.cat([found[state][:, settings.dropped :] for state in self._states], dim=-1)
        embeds = embeds.to(module.run_dtype).cpu()
        return Embedding(embeds, torch.ones(embeds.shape[:2], dtype=torch.int64), cut)


def make(config: Mapping[str, Any]) -> Qwen3Model:
    own = {key: config[key] for key in KEYS if key in config}
    own |= {"rope_theta": config.get("rope_theta", 5e6), "use_sliding_window": False, "sliding_window": None}
    return Qwen3Model(with_sdpa(Qwen3Config.from_dict(own)))
