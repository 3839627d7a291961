"""What a user comes to between the first load of a model and its release, each measured beside what it cost."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .measure import measured, on_device, resident
from .sides import SIDES, Loras, Side

if TYPE_CHECKING:
    import torch

    from .subject import Setting

PROMPT, OTHER_PROMPT = "a cat on a red chair", "a dog in the snow"
_RELOADS = 3  # at most: they cost most, and vary least


def warm(make: Callable[[Setting], Side], setting: Setting) -> Side:
    """A side, with everything imported that a run imports: by one of a tiny model, which is given up again."""
    tiny = make(setting.warm_up())
    tiny.load()
    for loras in (Loras((0,)), Loras((0,), merged=True), Loras()):
        tiny.set_loras(loras)
        tiny.picture(1, PROMPT)
    tiny.release()
    return make(setting)


def lived(side: str, setting: Setting) -> dict[str, Any]:
    """A life of one side: ``events``, each with its runs; and what is ``left`` of the memory after the release."""
    one = warm(SIDES[side], setting)
    gc.collect()
    before = resident() + on_device(setting.device)
    events = Events(one, setting.device)
    life = _Life(one, events, setting)
    events.event("load", one.load)
    life.pictures()
    life.changes("live", merged=False)
    life.changes("merged", merged=True)
    one.release()
    left = resident() + on_device(setting.device) - before
    return {"events": events.found, "left": left, "levels": life.levels}


class Events:
    """Collects what happened to one side.

    Attributes:
        found: name -> the cost of each run, with what the engine counted in it.
    """

    def __init__(self, side: Side, device: str) -> None:
        self.found: dict[str, list[dict[str, Any]]] = {}
        self._side = side
        self._device = device

    def event(self, name: str, work: Callable[[], object]) -> None:
        """Does the work, and keeps what it cost."""
        counted = self._side.counters()
        with measured(self._device) as cost:
            work()
        done = {key: value - counted[key] for key, value in self._side.counters().items()}
        self.found.setdefault(name, []).append(asdict(cost) | {"counters": done})


class _Life:
    """Has the events happen.

    Attributes:
        levels: by how much the first picture is another one after merges were taken off, of 255.
    """

    def __init__(self, side: Side, events: Events, setting: Setting) -> None:
        self.levels = 0
        self._side = side
        self._event = events.event
        self._setting = setting

    def pictures(self) -> None:
        self._event("first picture", lambda: self._picture(1))
        self._event("another seed", lambda: self._picture(2))
        self._event("another prompt", lambda: self._picture(2, OTHER_PROMPT))

    def changes(self, how: str, *, merged: bool) -> None:
        """LoRAs on, with other strengths, exchanged, off; and what it costs to load everything again instead."""
        without = None if not merged else self._picture(1)
        # what pictures left is not in the changes' memory
        gc.collect()

        def put(number: int, strength: float = 1.0) -> None:
            self._side.set_loras(Loras((number,), strength, merged))

        self._event(f"first LoRA {how}", lambda: put(0))
        for number in range(1, self._setting.pairs + 1):
            self._event(f"strength {how}", lambda number=number: put(0, 1 + number / 10))
        # each one is new where there are enough: its file is read
        for number in range(1, self._setting.pairs + 1):
            self._event(f"swap {how}", lambda number=number: put(number % len(self._setting.lora_files)))
        self._event(f"off {how}", lambda: self._side.set_loras(Loras()))
        if without is not None:
            self.levels = int((self._picture(1).int() - without.int()).abs().max())
        for _ in range(min(self._setting.pairs, _RELOADS)):
            self._event(f"reload {how}", lambda: self._reload(lambda: put(0)))
        self._side.set_loras(Loras())

    def _picture(self, seed: int, prompt: str = PROMPT) -> torch.Tensor:
        return self._side.picture(seed, prompt)

    def _reload(self, then: Callable[[], None]) -> None:
        self._side.release()
        self._side.load()
        then()
