"""The programs that the pack can be compared with, and how each is told from the environment where it lies."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....pipelines.errors import AITKError
from ....pipelines.words import shown
from ..interpreter import Interpreter
from ..sides import REFERENCE, Side
from .ai_toolkit import AIToolkit
from .inference import Inference

if TYPE_CHECKING:
    from ..subject import Setting


class PeerError(AITKError):
    """The environment names no peer, or one by halves, or one that is not there."""


@dataclass(frozen=True)
class Kind:
    """A program that renders the same model.

    Attributes:
        title: its name, as the head of its column.
        path: environment variable with its checkout.
        pythons: those with the interpreter that runs it; the first that is set counts.
        side: how it is called.
        recipe: of ours that renders the same.
        merged: whether its LoRAs are merged into the weights while it renders; ours are then, too.
        strength: what another strength makes it do, in a sentence.
        swap: the same of another LoRA.
        pixels: why its pictures are not ours where they are not, in a sentence.
    """

    title: str
    path: str
    pythons: tuple[str, ...]
    side: Callable[[Setting], Side]
    recipe: str
    merged: bool
    strength: str
    swap: str
    pixels: str


_AI_TOOLKIT = "AI_TOOLKIT_PYTHON"
KINDS = (
    Kind(
        "AI Toolkit", "AI_TOOLKIT_PATH", (_AI_TOOLKIT,), AIToolkit, "trainer preview", True,
        "AI Toolkit merges before each picture and subtracts after it",
        "AI Toolkit's job has one network: everything is loaded again, without its imports here",
        "AI Toolkit's subtraction of a merge rounds: after a picture with a LoRA it goes on with other weights, and "
        "ours with those of the file.",
    ),
    Kind(
        "ai-toolkit-inference", "AITI_PATH", ("AITI_PYTHON", _AI_TOOLKIT), Inference, REFERENCE, False,
        "its node loads everything again",
        "its node loads everything again",
        "It rounds the rotary frequencies of Lumina2's text encoder to bfloat16, and diffusers' pipeline, which the "
        "recipe follows, does not: with the same frequencies the pixels are the same.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A program that is there to be measured.

    Attributes:
        kind: which one.
        checkout: a folder.
        python: the interpreter that runs it, and ours beside it.
    """

    kind: Kind
    checkout: Path
    python: Path

    @property
    def interpreter(self) -> Interpreter:
        return Interpreter(str(self.python), str(self.checkout))

    @property
    def commit(self) -> str:
        """The checkout's, shortened; ``unknown`` where it is no clone or there is no git."""
        command = ["git", "-C", str(self.checkout), "rev-parse", "--short=8", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return "unknown"
        return done.stdout.strip() or "unknown"


def peers_in(environment: Mapping[str, str]) -> list[Peer]:
    """The peers that the variables name.

    Args:
        environment: e.g. ``os.environ``.

    Raises:
        PeerError: they name none, leave one's interpreter out, or name what is not there.
    """
    given = [kind for kind in KINDS if environment.get(kind.path)]
    if not given:
        ways = " or ".join(f"{kind.path} and {' or '.join(kind.pythons)} for {kind.title}" for kind in KINDS)
        raise PeerError(
            "--peers has nothing to compare with, since no checkout is named. Name a checkout, and an interpreter that "
            f"has its requirements and this pack's: {ways}."
        )
    return [_peer(kind, environment) for kind in given]


def _peer(kind: Kind, environment: Mapping[str, str]) -> Peer:
    variable = next((name for name in kind.pythons if environment.get(name)), None)
    if variable is None:
        raise PeerError(
            f"{kind.path} names a checkout of {kind.title}, and nothing says what runs it: set "
            f"{' or '.join(kind.pythons)} to an interpreter that has its requirements and this pack's."
        )
    checkout, python = (Path(environment[name]).absolute() for name in (kind.path, variable))
    if not checkout.is_dir():
        raise PeerError(_missing(kind.path, checkout, f"a checkout of {kind.title}"))
    if not python.is_file():
        raise PeerError(_missing(variable, python, f"an interpreter that runs {kind.title}"))
    return Peer(kind, checkout, python)


def _missing(variable: str, path: Path, wanted: str) -> str:
    return f"{variable} is {shown(str(path))}, where nothing of the kind is: set it to {wanted}."
