"""What runs in a process of its own, so that memory is measured cleanly: each child prints one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...pipelines.errors import AITKError
from .measure import Cost, measured, on_device, resident
from .sides import Loras, Side, side_of
from .subject import STACK, STRENGTH, Setting, make

ROOT = Path(__file__).resolve().parents[2]
PROMPT, OTHER_PROMPT = "a cat on a red chair", "a dog in the snow"
_IMPORTS = {
    "ours": "import tasks; tasks.load_pack()",
    "diffusers": "from diffusers import Lumina2Pipeline",
}
# beyond torch, which ComfyUI has imported before any node
_TIMED = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


class ChildFailed(AITKError):
    """A child process ended without an answer."""


def ask(name: str, side: str, setting: Setting) -> Any:
    """What a child answers; raises ChildFailed with its last words where it does not."""
    return json.loads(_run([str(ROOT / "tasks.py"), "bench", "--child", name, side, setting.as_json()], name))


def import_seconds(side: str) -> float:
    """Of the pack, or of diffusers' pipeline, in a process that has torch."""
    return float(_run(["-c", _TIMED.format(_IMPORTS[side])], "import"))


def _run(arguments: list[str], name: str) -> str:
    # its bars and warnings are not the table's
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode or not done.stdout.strip():
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ChildFailed(f"The measurement {name!r} ended with {done.returncode}:\n{last}")
    return done.stdout.strip().splitlines()[-1]


def answer(name: str, side: str, setting: Setting) -> None:
    """The child's own half of :func:`ask`."""
    sys.stdout.write(json.dumps(_CHILDREN[name](side, setting)) + "\n")


def _make(side: str, setting: Setting) -> dict[str, Any]:
    make(setting)
    return {}


def _warm(side: str, setting: Setting) -> Side:
    """A side, with everything imported that a run imports: by one of a tiny model, which is given up again."""
    tiny = side_of(side, setting.warm_up())
    tiny.load()
    for loras in (Loras((0,)), Loras((0,), merged=True), Loras()):
        tiny.set_loras(loras)
        tiny.picture(1, PROMPT)
    tiny.release()
    return side_of(side, setting)


def _load(side: str, setting: Setting) -> dict[str, Any]:
    one = _warm(side, setting)
    with measured(setting.device) as cost:
        one.load()
    return _costs(cost)


def _life(side: str, setting: Setting) -> dict[str, Any]:
    """From the first load to the release, in the order in which a user comes to it."""
    one = _warm(side, setting)
    before = resident() + on_device(setting.device)
    events: dict[str, Any] = {}

    def event(name: str, *works: Callable[[], object]) -> None:
        """The last of the works is measured; the others come before it."""
        for work in works[:-1]:
            work()
        counted = one.counters()
        with measured(setting.device) as cost:
            works[-1]()
        events.setdefault(name, []).append(
            _costs(cost) | {"counters": {key: value - counted[key] for key, value in one.counters().items()}}
        )

    def loras(*numbers: int, strength: float = 1.0, merged: bool = False) -> Callable[[], None]:
        return lambda: one.set_loras(Loras(numbers, strength, merged))

    def reload(then: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            one.release()
            one.load()
            then()

        return work

    event("load", one.load)
    event("first picture", lambda: one.picture(1, PROMPT))
    event("another seed", lambda: one.picture(2, PROMPT))
    event("another prompt", lambda: one.picture(2, OTHER_PROMPT))
    for merged in (False, True):
        how = "merged" if merged else "live"
        event(f"first LoRA {how}", loras(), loras(0, merged=merged))
        for number in range(1, setting.pairs + 1):
            event(f"strength {how}", loras(0, strength=1 + number / 10, merged=merged))
        for number in range(1, min(setting.pairs, STACK) + 1):
            # each is new: its file is read
            event(f"swap {how}", loras(number, merged=merged))
        for _ in range(min(setting.pairs, 3)):
            event(f"reload {how}", reload(loras(0, merged=merged)))
    one.release()
    return {"events": events, "left": resident() + on_device(setting.device) - before}


def _steps(side: str, setting: Setting) -> dict[str, Any]:
    """Both sides by turns in one process: a step without LoRAs, with one and with eight, and the calls alone."""
    ours, peer = _warm("ours", setting), _warm("diffusers", setting)
    found: dict[str, Any] = {}
    for one in (ours, peer):
        one.load()
    for name, loras in {"none": Loras(), "one": Loras((0,)), "stack": Loras(range(STACK), STRENGTH)}.items():
        rows: list[dict[str, float]] = []
        for one in (ours, peer):
            one.set_loras(loras)
            # the first picture of a shape is slower
            one.picture(0, PROMPT, steps=1)
        same = True
        for number in range(setting.pairs):
            pictures = [one.picture(number, PROMPT, steps=1) for one in ((ours, peer) if number % 2 else (peer, ours))]
            same &= bool((pictures[0] == pictures[1]).all())
            row = {"ours": ours.watch.whole, "diffusers": peer.watch.whole}
            row |= {"ours inside": ours.watch.inside, "diffusers inside": peer.watch.inside}
            if name == "none":
                row["replayed"] = ours.watch.replayed(ours.denoiser())
            rows.append(row)
        found[name] = {"rows": rows, "same": same}
    return found


def _costs(cost: Cost) -> dict[str, float]:
    return {"seconds": cost.seconds, "peak": cost.peak}


_CHILDREN: dict[str, Callable[[str, Setting], dict[str, Any]]] = {
    "make": _make, "load": _load, "life": _life, "steps": _steps,
}  # fmt: skip
