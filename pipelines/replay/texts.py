"""The texts of many cells, encoded before the first of them: an encoder comes once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import AITKError

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..lora.stack import AppliedLora
    from ..observer import Observer
    from ..parts.encoder import Embedding, Text
    from ..run.run import Run


@dataclass
class _Together:
    """Texts that are encoded in one go, the keys of the cells that need them, and what came of it."""

    wanted: Wanted
    texts: dict[Text, None] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    embeddings: list[Embedding] | None = None


def _as_it_is(wanted: Wanted) -> AbstractContextManager[None]:
    return nullcontext()


class TextsAhead:
    """Collects the texts of cells; those whose encoders have the same LoRAs are encoded together."""

    def __init__(self) -> None:
        self._groups: dict[tuple[AppliedLora, ...], _Together] = {}

    def add(self, key: str, run: Run) -> None:
        """Adds a prepared cell's."""
        texts = run.wanted.model.texts(run.job)
        encoders = dict.fromkeys(text.encoder for text in texts)
        loras = tuple(lora for name in encoders for lora in run.wanted.loras_of(name))
        group = self._groups.setdefault(loras, _Together(run.wanted))
        group.texts.update(dict.fromkeys(texts))
        group.keys.append(key)

    @property
    def count(self) -> int:
        """How many embeddings they are."""
        return sum(len(group.texts) for group in self._groups.values())

    def encode(
        self, engine: Engine, observer: Observer, around: Callable[[Wanted], AbstractContextManager[None]] = _as_it_is
    ) -> Iterator[tuple[str, str]]:
        """Encodes them into the engine's memory; gives the key and the error of each cell whose texts failed.

        Args:
            engine: keeps the embeddings; see :meth:`..engine.engine.Engine.keeping_texts`.
            observer: told of a load, asked for interruption.
            around: what holds while the texts of a run are encoded.
        """
        import torch

        for group in self._groups.values():
            try:
                with torch.inference_mode(False), torch.no_grad(), engine.device_memory(), around(group.wanted):
                    group.embeddings = engine.embeddings(group.wanted, list(group.texts), observer)
            except AITKError as error:
                yield from ((key, str(error)) for key in group.keys)

    @property
    def encoded(self) -> list[list[Embedding] | None]:
        """What was encoded, for :meth:`give` of the same cells elsewhere; None for texts that failed."""
        return [group.embeddings for group in self._groups.values()]

    def give(self, engine: Engine, encoded: Sequence[Sequence[Embedding] | None]) -> None:
        """Has an engine take what was encoded elsewhere."""
        for group, embeddings in zip(self._groups.values(), encoded, strict=True):
            if embeddings is not None:
                engine.take_embeddings(group.wanted, list(group.texts), embeddings)
