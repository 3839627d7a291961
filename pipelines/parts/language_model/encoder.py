"""A language model as a text encoder: text to the hidden states of one or several layers, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import torch
from torch import nn

from ...errors import FileError
from ...layers.fill import build_empty
from ..encoder import Embedding, Encoder, Text
from .tower_rope import TowerRope

if TYPE_CHECKING:
    from ...observer import Observer
    from ...options import Quantization
    from ...weights.source import Source
    from .files import LanguageModelFiles


@dataclass(frozen=True)
class EncoderSettings:
    """What changes an embedding besides the text; models that have more to say have a subclass of this.

    Attributes:
        cast_rope: whether the rotary frequencies are rounded to the run's dtype, and a vision tower's angles too. AI
            Toolkit casts whole modules, their buffers too, which in bfloat16 turns 0.1 into 0.10009765625 and moves
            every later position.
    """

    cast_rope: bool = False


class Tokenizer(Protocol):
    """A text to the ids of what the encoder gets, as many as it needs; templates that it knows are in them."""

    pad_id: int
    pad_left: bool

    def __call__(self, text: str, settings: Any) -> list[int]: ...


class LoadedLanguageModel(nn.Module):
    """Tokenizer and layers.

    Args:
        tokenizer: of the source.
        model: transformers' module.
        dtype: what it runs in.
        name: of the source, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, model: nn.Module, dtype: torch.dtype, name: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        self.run_dtype = dtype
        self._name = name
        # kept apart: the buffers in the model are overwritten
        self._frequencies = {key: buffer.clone() for key, buffer in model.named_buffers() if "inv_freq" in key}

    def set_rope(self, cast_rope: bool) -> None:
        """Makes the next call use rounded or exact rotary frequencies."""
        for name, exact in self._frequencies.items():
            value = exact.to(self.run_dtype).to(exact.dtype) if cast_rope else exact
            self.model.get_buffer(name).copy_(value)
        for module in self.model.modules():
            if isinstance(module, TowerRope):
                module.dtype = self.run_dtype if cast_rope else torch.float32

    def tokens(self, text: Text) -> list[int]:
        """The ids of a text, uncut; raises FileError where the encoder does not know one that is kept."""
        found = self.tokenizer(text.text, text.settings)
        known = cast("nn.Embedding", self.model.get_submodule("embed_tokens")).num_embeddings
        # a tokenizer may know more than the encoder, as long as the text does not need it
        largest = max(found[: text.length], default=0)
        if largest >= known:
            raise FileError(
                f"The tokenizer does not belong to the text encoder of {self._name!r}: it gives token {largest}, and "
                f"the encoder knows {known}. Download both from one repository."
            )
        return found

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> Sequence[torch.Tensor]:
        """Of ids [1, length]: the token embeddings, then the output of each layer, each [1, length, D]."""
        return self.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states


class LanguageModel(Encoder):
    """A language model as a part.

    Args:
        name: of the part.
        files: what its files look like.
        make: configuration -> transformers' module, whose names those of the files are.
        load_tokenizer: makes the tokenizer of a source; raises FileError.
        states: the hidden states that stand side by side in an embedding, counted as in a list: 0 are the token
            embeddings, -1 the last that there is.
        padded: whether short texts are padded to their length before the encoder sees them.
        needs: closes messages about another encoder, e.g. ``OmniGen2 needs Qwen2.5-VL 3B.``
        surplus: see :class:`..part.Part`.
    """

    def __init__(
        self,
        name: str,
        files: LanguageModelFiles,
        make: Callable[[Mapping[str, Any]], nn.Module],
        load_tokenizer: Callable[[Source], Tokenizer],
        *,
        states: Sequence[int],
        padded: bool,
        needs: str,
        surplus: Sequence[str] = ("rotary_emb.",),
    ) -> None:
        super().__init__(name)
        self.files = files
        self.surplus = surplus
        self._make = make
        self._load_tokenizer = load_tokenizer
        self._states = states
        self._padded = padded
        self._needs = needs

    def check_kind(self, source: Source) -> None:
        config = source.config()
        if config.get("model_type") != self.files.model_type:
            self._refuse(source, f"is a {config.get('model_type')!r} model, not {self.files.model_type}")
        layers, read = config.get("num_hidden_layers"), self.files.layers or 0
        if not isinstance(layers, int) or layers < read:
            self._refuse(source, f"has {layers} layers, and {read} are needed")
        if source.tokenizer() is None:
            self._refuse(source, f"has no tokenizer: {source.tokenizer_name} is missing")

    def empty(self, source: Source) -> nn.Module:
        return build_empty(lambda: self._built(source.config()), f"{source.config_name} of {source.name!r}")

    def load(
        self,
        source: Source,
        dtype: torch.dtype,
        quantization: Quantization,
        plain: Sequence[str],
        observer: Observer,
        only: Sequence[str] = (),
    ) -> nn.Module:
        tokenizer = self._load_tokenizer(source)
        model = super().load(source, dtype, quantization, plain, observer, only)
        return self._loaded(tokenizer, model, dtype, source.name)

    def lora_root(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, LoadedLanguageModel)
        return module.model

    def blocks(self, root: nn.Module) -> Sequence[nn.Module]:
        return list(root.get_submodule("layers").children())

    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        assert isinstance(module, LoadedLanguageModel)
        self._configure(module, text)
        tokens = module.tokens(text)
        kept = tokens[: text.length]
        padding = text.length - len(kept) if self._padded else 0
        ids, mask = [module.tokenizer.pad_id] * padding, [0] * padding
        left = module.tokenizer.pad_left
        ids = ids + kept if left else kept + ids
        mask = mask + [1] * len(kept) if left else [1] * len(kept) + mask
        attention_mask = torch.tensor([mask], device=device)
        found = module.hidden_states(torch.tensor([ids], device=device), attention_mask)
        embeds = torch.cat([found[state] for state in self._states], dim=-1).to(module.run_dtype)
        return Embedding(embeds.cpu(), attention_mask.cpu(), len(tokens) - len(kept))

    def _loaded(self, tokenizer: Tokenizer, model: nn.Module, dtype: torch.dtype, name: str) -> LoadedLanguageModel:
        return LoadedLanguageModel(tokenizer, model, dtype, name)

    def _configure(self, module: LoadedLanguageModel, text: Text) -> None:
        """Makes the next call use a text's settings."""
        assert isinstance(text.settings, EncoderSettings)
        module.set_rope(text.settings.cast_rope)

    def _built(self, config: Mapping[str, Any]) -> nn.Module:
        model = self._make(config)
        if not self.files.final_norm:
            # the last hidden state is read before it
            model.norm = nn.Identity()
        return model

    def _refuse(self, source: Source, why: str) -> NoReturn:
        raise FileError(f"The text encoder of {source.name!r} {why}. {self._needs}")


def with_sdpa(config: Any) -> Any:
    """A configuration whose model runs torch's SDPA.

    Set, not inherited: what masked rows give depends on the kernel, and with SDPA transformers 4.57, 5.5 and 5.23 agree
    on them to the bit.
    """
    config._attn_implementation = "sdpa"
    return config
