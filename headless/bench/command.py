"""The command ``bench``: measures, prints the table, and says which targets hold."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..local import exit_status
from .children import answer, ask, import_seconds
from .peers.kinds import Peer, peers_in
from .peers.life import sides_of
from .peers.rows import Pair, rows_beside
from .rows import rows_of, verdict
from .subject import MODELS, Setting
from .table import lines_of, page_of, section_of

_PAGE = Path(__file__).resolve().parents[2] / "BENCHMARK.md"
_SIDES = ("ours", "diffusers")


def bench_command(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0 where all judged targets hold, 1 where not or after an error of ours."""
    if argv[:1] == ["--child"]:
        answer(argv[1], argv[2], Setting.from_json(argv[3]))
        return 0
    arguments = _parse(argv)
    status = [0]

    def run() -> None:
        status[0] = _bench(arguments)

    return exit_status(run) or status[0]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tasks.py bench", description="Times and memory beside plain diffusers calls on the same files."
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model: its times say nothing and are not judged")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="of which family (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the model is made, or was by an earlier run (default: none)")
    parser.add_argument("--pairs", type=int, help="how often each pair of runs is repeated (default: 5; quick: 3)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    parser.add_argument(
        "--peers", action="store_true",
        help="also beside AI Toolkit (AI_TOOLKIT_PATH, AI_TOOLKIT_PYTHON) and the nodes of ai-toolkit-inference "
        "(AITI_PATH, AITI_PYTHON), those that are set",
    )  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"put the table into {_PAGE.name}")
    return parser.parse_args(argv)


def _bench(arguments: argparse.Namespace) -> int:
    pairs = arguments.pairs or (3 if arguments.quick else 5)
    peers = peers_in(os.environ) if arguments.peers else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.folder is None else arguments.folder.resolve()
        setting = Setting(
            arguments.model,
            # two models, one for each way to run
            folder / ("quick" if arguments.quick else "realistic"),
            arguments.device or _best_device(),
            not arguments.quick,
            pairs,
        )
        if not setting.realistic:
            setting = replace(setting, size=64)
        if not setting.is_made:
            _say("making the model")
            ask("make", "", setting)
        weights = setting.weights
        rows = rows_of(_measured(setting), weights, setting.device == "cpu")
        line, status = verdict(rows, setting.realistic)
        print(*lines_of(rows, setting.realistic), line, sep="\n", flush=True)
        sections = [_beside(peer, setting) for peer in peers]
    if arguments.write:
        _PAGE.write_text(page_of(rows, setting, weights, line, sections), "utf-8")
    return status


def _measured(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"import": {side: [] for side in _SIDES}, "load": {side: [] for side in _SIDES}}
    _say("imports")
    if setting.realistic:
        # Python compiles what it has not compiled yet
        import_seconds("ours")
    for number in range(setting.pairs):
        for side in _turns(number):
            found["import"][side].append(import_seconds(side))
    found["life"] = {}
    for side in _SIDES:
        _say(f"from load to release, {side}")
        found["life"][side] = ask("life", side, setting)
        found["load"][side] += found["life"][side]["events"]["load"]
    for number in range(1, setting.pairs):
        _say(f"cold load {number + 1} of {setting.pairs}")
        for side in _turns(number):
            found["load"][side].append(ask("load", side, setting))
    _say("steps by turns")
    found["steps"] = ask("steps", "", setting)
    return found


def _beside(peer: Peer, setting: Setting) -> str:
    """Measures beside a peer and prints that table; returns the page's section of it."""
    pairs = _lives(peer, setting)
    rows, about = rows_beside(peer.kind, pairs, setting.weights), _about(peer, pairs)
    print("", about, *lines_of(rows, setting.realistic, peer.kind.title), sep="\n", flush=True)
    return section_of(rows, setting, peer.kind.title, about)


def _lives(peer: Peer, setting: Setting) -> list[Pair]:
    """Of ours and of the peer by turns, all in the peer's interpreter."""
    pairs: list[Pair] = []
    ours, peers = sides_of(peer.kind)
    for number in range(setting.pairs):
        _say(f"beside {peer.kind.title}, {number + 1} of {setting.pairs}")
        lives = {side: ask("peers", side, setting, peer.interpreter) for side in _turns(number, (ours, peers))}
        pairs.append((lives[ours], lives[peers]))
    return pairs


def _about(peer: Peer, pairs: Sequence[Pair]) -> str:
    """What ran beside ours, and how ours ran."""
    libraries = ", ".join(f"{name} {number}" for name, number in pairs[0][1]["versions"].items())
    return (
        f"{peer.kind.title} at {peer.commit}, and ours by the recipe `{peer.kind.recipe}` in the same interpreter: "
        f"{libraries}. {peer.kind.pixels}"
    )


def _turns(number: int, sides: tuple[str, ...] = _SIDES) -> tuple[str, ...]:
    return sides if number % 2 == 0 else sides[::-1]


def _best_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _say(what: str) -> None:
    print(f"bench: {what} ...", file=sys.stderr, flush=True)
