"""What runs in a process of its own, so that memory is measured cleanly: each child prints one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...pipelines.errors import AITKError
from .interpreter import THIS, Interpreter
from .life import PROMPT, lived, warm
from .measure import measured
from .peers.life import lived_beside
from .sides import SIDES, Loras
from .subject import STACK, STRENGTH, Setting, make

ROOT = Path(__file__).resolve().parents[2]
_IMPORTS = {
    "ours": "import tasks; tasks.load_pack()",
    "diffusers": "from diffusers import Lumina2Pipeline",
}
# beyond torch, which ComfyUI has imported before any node
_TIMED = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_ASKED = "import sys, tasks; tasks.bench(sys.argv[1:])"
# the model is a folder here
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DISABLE_TELEMETRY": "YES", "NO_ALBUMENTATIONS_UPDATE": "1"}


class ChildFailed(AITKError):
    """A child process ended without an answer."""


def ask(name: str, side: str, setting: Setting, by: Interpreter = THIS) -> Any:
    """What a child answers.

    Args:
        name: of the measurement, see ``_CHILDREN``.
        side: whose.
        setting: of the run.
        by: runs it.

    Raises:
        ChildFailed: it does not answer; the text has its last words.
    """
    return json.loads(_run(["-c", _ASKED, "--child", name, side, setting.as_json()], f"{name} {side}".strip(), by))


def import_seconds(side: str) -> float:
    """Of the pack, or of diffusers' pipeline, in a process that has torch."""
    return float(_run(["-c", _TIMED.format(_IMPORTS[side])], "import"))


def _run(arguments: list[str], name: str, by: Interpreter = THIS) -> str:
    environment = {**os.environ, **_OFFLINE, "PYTHONPATH": by.search_path(str(ROOT))}
    # ComfyUI keeps what Python compiled, and starts with it
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([by.python, *arguments], capture_output=True, text=True, env=environment)
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


def _load(side: str, setting: Setting) -> dict[str, Any]:
    one = warm(SIDES[side], setting)
    with measured(setting.device) as cost:
        one.load()
    return asdict(cost)


def _steps(side: str, setting: Setting) -> dict[str, Any]:
    """Both sides by turns in one process: a step without LoRAs, with one and with eight, and the calls alone."""
    ours, peer = warm(SIDES["ours"], setting), warm(SIDES["diffusers"], setting)
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
        # more than of other pairs: one step differs from the next by a twentieth
        for number in range(3 * setting.pairs):
            pictures = [one.picture(number, PROMPT, steps=1) for one in ((ours, peer) if number % 2 else (peer, ours))]
            same &= bool((pictures[0] == pictures[1]).all())
            row = {"ours": ours.watch.whole, "diffusers": peer.watch.whole}
            row |= {"ours inside": ours.watch.inside, "diffusers inside": peer.watch.inside}
            if name == "none":
                row["replayed"] = ours.watch.replayed(ours.denoiser())
            rows.append(row)
        found[name] = {"rows": rows, "same": same}
    return found


_CHILDREN: dict[str, Callable[[str, Setting], dict[str, Any]]] = {
    "make": _make, "load": _load, "life": lived, "steps": _steps, "peers": lived_beside,
}  # fmt: skip
