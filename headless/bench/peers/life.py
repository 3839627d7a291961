"""A life of the pack or of a peer, both in the peer's interpreter: from the load to the release, with one LoRA."""

from __future__ import annotations

import gc
import hashlib
import sys
from typing import TYPE_CHECKING, Any

from ....pipelines.run.report import versions
from ..life import OTHER_PROMPT, PROMPT, Events, warm
from ..measure import on_device, resident
from ..sides import Loras, Ours, Side
from .kinds import KINDS, Kind

if TYPE_CHECKING:
    from ..subject import Setting

_OURS = "ours beside "


def sides_of(kind: Kind) -> tuple[str, str]:
    """The names of both lives: ours, the peer's."""
    return _OURS + kind.title, kind.title


def lived_beside(side: str, setting: Setting) -> dict[str, Any]:
    """Of one life: its ``events``, ``steps`` in seconds, digests of its ``pictures``, and what is ``left`` of it.

    Args:
        side: whose, see :func:`sides_of`.
        setting: of the run.
    """
    kind = next(kind for kind in KINDS if side in sides_of(kind))
    _settle_kernels()

    def make(setting: Setting) -> Side:
        return Ours(setting, kind.recipe) if side.startswith(_OURS) else kind.side(setting)

    one = warm(make, setting)
    gc.collect()
    before = resident() + on_device(setting.device)
    events = Events(one, setting.device)
    life = _Life(one, events, setting.steps)
    events.event("load", one.load)
    life.picture("first picture", 1)
    life.picture("another seed", 2)
    life.picture("another prompt", 2, OTHER_PROMPT)
    life.picture("a LoRA", 2, loras=Loras((0,), 1.0, kind.merged))
    life.picture("another strength", 2, loras=Loras((0,), 1.1, kind.merged))
    life.picture("another LoRA", 2, loras=Loras((1,), 1.1, kind.merged))
    one.release()
    left = resident() + on_device(setting.device) - before
    return {
        "events": events.found, "steps": life.steps, "pictures": life.pictures, "left": left, "versions": versions(),
    }  # fmt: skip


class _Life:
    """Takes pictures.

    Attributes:
        steps: picture -> seconds of each of its steps.
        pictures: picture -> a digest of its pixels.
    """

    def __init__(self, side: Side, events: Events, count: int) -> None:
        self.steps: dict[str, float] = {}
        self.pictures: dict[str, str] = {}
        self._side = side
        self._events = events
        self._count = count

    def picture(self, name: str, seed: int, prompt: str = PROMPT, loras: Loras | None = None) -> None:
        """The event is the picture, and before it the LoRAs where these are to be others."""

        def work() -> None:
            if loras is not None:
                self._side.set_loras(loras)
            pixels = self._side.picture(seed, prompt)
            self.pictures[name] = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()

        self._events.event(name, work)
        self.steps[name] = self._side.watch.calling / self._count


def _settle_kernels() -> None:
    """Without a GPU, hides triton: with it AI Toolkit takes kernels that need one."""
    import torch

    if not torch.cuda.is_available():
        # an import of a name that maps to None is an ImportError
        sys.modules["triton"] = None  # type: ignore[assignment]
