"""The command ``run``: a workflow from a file, in this process or on a ComfyUI server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nodes.host import PlainHost
from ..pipelines.errors import FileError
from ..pipelines.pictures.saving import make_folder
from .local import exit_status, option, prepare_file, run_document, saved_pictures, write_report
from .processes import Share, joined, leave
from .server import reports_in, run_on_server
from .workflow import read_workflow


@dataclass(frozen=True)
class _Made:
    images: list[Path]
    reports: dict[str, Any]
    seconds: float


def run_command(argv: Sequence[str]) -> int:
    """Runs the command with its arguments (the word ``run`` itself left out); returns the exit status.

    0: done; 1: an error, which is printed; 2: wrong arguments (raised as SystemExit by argparse); 130: Ctrl-C. One of
    several processes ends here, see :func:`.processes.leave`.
    """
    arguments = _parse(argv)
    return leave(exit_status(lambda: _run(arguments)))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run", description="Run a workflow without ComfyUI's page, and print the path of each picture it saves."
    )
    parser.add_argument("workflow", type=Path, help="a .json file saved by ComfyUI, of either format")
    parser.add_argument("--models", type=Path, help="folder with ComfyUI's layout: diffusers, loras, vae, ...")
    parser.add_argument("--input", type=Path, help="folder of the pictures to load (default: the workflow's folder)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the pictures (default: output)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="replace an input; NODE is an id, a class or a title; may be given several times",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write pictures, reports and seconds there as JSON")
    parser.add_argument("--server", metavar="URL", help="run it on this ComfyUI, e.g. http://127.0.0.1:8188")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu, ... (default: the best there is)")
    arguments = parser.parse_args(argv)
    if not arguments.server and arguments.models is None:
        parser.error("--models is needed, unless the workflow runs on a --server")
    if arguments.input is None:
        arguments.input = arguments.workflow.parent
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    # before the run: its pictures may take hours
    make_folder(arguments.output, option("--output", arguments.output))
    if arguments.report:
        prepare_file("--report", arguments.report)
    if arguments.server:
        _tell(arguments, _run_on_server(arguments))
        return
    with joined(arguments.device, arguments.output) as own:
        made = _run_here(arguments, own)
        if own.first:
            _tell(arguments, made)


def _tell(arguments: argparse.Namespace, made: _Made) -> None:
    for image in made.images:
        print(image)
    if arguments.report:
        write_report(arguments.report, arguments.output, made.images, made.reports, made.seconds)


def _run_here(arguments: argparse.Namespace, own: Share) -> _Made:
    document = read_workflow(arguments.workflow)
    if not os.path.isdir(arguments.models):
        raise FileError(f"{option('--models', arguments.models)} is no folder. It holds diffusers, loras, ...")
    host = PlainHost(arguments.models, arguments.input, own.output, own.device, processes=own.processes)
    result = run_document(document, host, arguments.set)
    return _Made(saved_pictures(result, own.output), reports_in(result.outputs), result.seconds)


def _run_on_server(arguments: argparse.Namespace) -> _Made:
    made = run_on_server(
        read_workflow(arguments.workflow),
        arguments.server,
        sets=arguments.set,
        output=arguments.output,
        input=arguments.input,
        progress=lambda line: print(line, file=sys.stderr),
    )
    return _Made(made.images, made.reports, made.seconds)
