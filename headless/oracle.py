"""``replay --oracle``: which engine of AI Toolkit's is asked too, and what is printed of its answers."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..nodes.host import current_host
from ..pipelines.errors import InputError
from ..pipelines.oracle.access import TOKEN_VARIABLE, Address, Token, find_token, parse_address
from ..pipelines.words import printable

if TYPE_CHECKING:
    from ..pipelines.jobs.job import TrainingJob
    from ..pipelines.observer import Observer
    from ..pipelines.oracle.beside import Beside
    from ..pipelines.replay.judge import Judged
    from ..pipelines.replay.selection import Selection
    from ..pipelines.replay.store import CellStore

_SECONDS = 1800.0  # loading and quantising a large model says nothing for minutes
_OTHERS = {"oracle_file": "--oracle-file", "oracle_remote": "--oracle-remote", "oracle_timeout": "--oracle-timeout"}


@dataclass(frozen=True)
class Oracle:
    """The engine that is asked.

    Attributes:
        address, token: where it is, and how it lets us in.
        seconds: without a sign of life before a picture is given up.
    """

    address: Address
    token: Token
    seconds: float

    def ask(
        self, job: TrainingJob, selection: Selection, judged: Iterable[Judged], store: CellStore, observer: Observer
    ) -> Iterator[Beside]:
        """Has the engine draw the cells of a selection, then sets each of ours beside it.

        Raises:
            Exception: whatever the observer raises to interrupt, after the engine was told to stop.
        """
        from ..pipelines.jobs.architecture import facts_of
        from ..pipelines.jobs.era import recipes_by_step
        from ..pipelines.oracle.beside import three_ways
        from ..pipelines.oracle.connection import Connection
        from ..pipelines.oracle.consult import consult
        from ..pipelines.replay.control import ControlFolders

        facts = facts_of(job.model)
        recipes = recipes_by_step(job, selection.checkpoints, facts) if facts else {}
        folders = ControlFolders(job.folder, current_host().input_folder())
        engine = Connection(self.address, self.token, observer)
        witnesses = consult(job, selection, recipes, folders, engine, store, observer, self.seconds)
        return three_ways(judged, witnesses)


def add_oracle_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options on the engine."""
    parser.add_argument("--oracle", metavar="URL", help="AI Toolkit's engine renders too, e.g. http://127.0.0.1:8765")
    parser.add_argument(
        "--oracle-file",
        type=Path,
        metavar="FILE",
        help=f"the engine's engine.json, for its token (default: {TOKEN_VARIABLE}, else JOB_DIR/engine.json)",
    )
    parser.add_argument(
        "--oracle-remote", action="store_true", help="allow another machine's engine: prompts and token leave this one"
    )
    parser.add_argument(
        "--oracle-timeout",
        type=float,
        metavar="SECONDS",
        help=f"without a sign of life from the engine before a picture is given up (default: {_SECONDS:g})",
    )


def chosen_oracle(arguments: argparse.Namespace) -> Oracle | None:
    """The engine that the options name; None without ``--oracle``.

    Raises:
        InputError, FileError: they name none that may be asked.
    """
    if arguments.oracle is None:
        alone = [flag for name, flag in _OTHERS.items() if getattr(arguments, name)]
        if alone:
            raise InputError(f"{alone[0]} says how an engine is asked, and none is named. Add --oracle URL.")
        return None
    seconds = _SECONDS if arguments.oracle_timeout is None else arguments.oracle_timeout
    # the comparison is false for NaN too
    if not 0 < seconds <= 86_400:
        raise InputError(f"--oracle-timeout is {seconds:g}: choose seconds, up to 86400, which is a day.")
    address = parse_address(arguments.oracle, remote=arguments.oracle_remote)
    job = arguments.job.resolve()
    return Oracle(address, find_token(address, arguments.oracle_file, job, remote=arguments.oracle_remote), seconds)


def tell_oracle(cells: Sequence[Mapping[str, Any]]) -> None:
    """Prints what the engine came to: an error for each cell without its picture, and how often each finding."""
    asked = [(cell, cell["oracle"]) for cell in cells if cell["oracle"] is not None]
    for cell, oracle in asked:
        if oracle["error"] is not None:
            where = f"step {cell['step']}, sample {cell['index']}"
            print(printable(f"not by the engine: {where}: {oracle['error']}"), file=sys.stderr)
    strange = dict.fromkeys(line for _, oracle in asked for line in oracle["not_understood"])
    for line in strange:
        print(printable(f"not understood: {line}"), file=sys.stderr)
    for finding, count in Counter(oracle["finding"] for _, oracle in asked).items():
        print(f"engine: {count} {finding}")
