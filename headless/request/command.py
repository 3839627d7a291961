"""The command ``request``: what another program was asked for, rendered here or written as a workflow."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...nodes.host import PlainHost
from ...pipelines.errors import FileError, InputError
from ...pipelines.models import find_model
from ...pipelines.pictures.saving import make_folder, replace_file
from ...pipelines.weights.choice import DEFAULT, Choice
from ...pipelines.words import printable, shown
from ..documents import Kind, read_object
from ..local import check_document, exit_status, option, prepare_file, run_document, saved_pictures, write_report
from ..server import reports_in
from .body import read_body
from .command_line import read_command_line
from .control import FOLDER, stage
from .found import Found, find_script_files, find_server_files
from .graph import workflow_of

if TYPE_CHECKING:
    from ...pipelines.options import Role
    from .rendering import Rendering

_REQUEST = Kind(
    "request",
    'A request is the JSON object that the server takes: {"model": ..., "prompts": [...], "loras": [...]}.',
    "Correct it there.",
    InputError,
)
_DRAWN_SEEDS = 2**31 - 1  # the server draws below this, and the script's own range has them, too


def request_command(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, see :func:`..local.exit_status`."""
    arguments = _parse(argv)
    return exit_status(lambda: _run(arguments))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tasks.py request",
        description="Render a request to ai-toolkit-inference's server (recipe 'reference pipeline'), or a command "
        "line of sd-scripts (recipe 'sd-scripts'), and print the path of each picture.",
    )
    parser.add_argument("request", type=Path, nargs="?", help="a .json file: the body of POST /v1/inference")
    parser.add_argument(
        "--sd-scripts", metavar="LINE", help="instead: lumina_minimal_inference.py's arguments, in quotes"
    )
    parser.add_argument(
        "--models", type=Path, required=True, help="folder with ComfyUI's layout: diffusers, loras, vae, ..."
    )
    parser.add_argument("--output", type=Path, help="render, and save the pictures into this folder")
    parser.add_argument("--workflow", type=Path, metavar="FILE", help="write it as a ComfyUI workflow (API format)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write pictures, reports, seconds and notes there as JSON"
    )
    parser.add_argument(
        "--weights",
        help="model folder or file below --models, or default: the model's repository (default: the folder of the "
        "model in --models, where there is one)",
    )
    parser.add_argument("--text-encoder", help="file in the folder text_encoders of --models; only with --weights")
    parser.add_argument("--vae", help="file in the folder vae of --models; only with --weights")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu, ... (default: the best there is)")
    arguments = parser.parse_args(argv)
    if (arguments.request is None) == (arguments.sd_scripts is None):
        parser.error("give either a request's file or --sd-scripts")
    if arguments.output is None and arguments.workflow is None:
        parser.error("--output is needed to render, or --workflow to write a workflow")
    if arguments.report is not None and arguments.output is None:
        parser.error("--report is of what is rendered, and needs --output")
    if (arguments.text_encoder or arguments.vae) and arguments.weights is None:
        parser.error("--text-encoder and --vae need --weights")
    if arguments.sd_scripts is not None and arguments.weights is not None:
        parser.error("--weights is for a server's request: a command line names its files itself")
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    if not os.path.isdir(arguments.models):
        raise FileError(f"{option('--models', arguments.models)} is no folder. It holds diffusers, loras, ...")
    found = _found(arguments)
    output = arguments.output or arguments.workflow.parent
    folder = output / FOLDER
    if arguments.workflow is not None:
        prepare_file("--workflow", arguments.workflow)
    if arguments.report is not None:
        prepare_file("--report", arguments.report)
    if arguments.output is not None:
        make_folder(arguments.output, option("--output", arguments.output))
    rendering = _with_control_images(found.rendering, arguments, folder)
    document = workflow_of(rendering)
    host = PlainHost(arguments.models, folder, output, arguments.device or rendering.device, found.extra)
    check_document(document, host)
    _tell(rendering)
    if arguments.workflow is not None:
        _write_workflow(arguments.workflow, document, found, rendering)
    if arguments.output is not None:
        result = run_document(document, host, [])
        # in the order of the prompts: a run may take the last one first
        ordered = {node: result.outputs[node] for node in document if node in result.outputs}
        images = saved_pictures(replace(result, outputs=ordered), output)
        for path in images:
            print(path)
        if arguments.report is not None:
            reports = reports_in(ordered)
            write_report(arguments.report, output, images, reports, result.seconds, notes=rendering.notes)


def _found(arguments: argparse.Namespace) -> Found:
    if arguments.sd_scripts is not None:
        return find_script_files(read_command_line(arguments.sd_scripts, _draw), arguments.models)
    body = read_object(arguments.request, _REQUEST)
    weights = None
    if arguments.weights is not None:
        files: dict[Role, str] = {"encoder": arguments.text_encoder or DEFAULT, "autoencoder": arguments.vae or DEFAULT}
        weights = Choice(arguments.weights, files=files)
    return find_server_files(read_body(body, _draw), arguments.models, arguments.request.parent, weights)


def _draw() -> int:
    return random.randrange(_DRAWN_SEEDS)


def _with_control_images(rendering: Rendering, arguments: argparse.Namespace, folder: Path) -> Rendering:
    """The request with the names that its control images have in ``folder``, where they are put."""
    if arguments.request is None:
        return rendering
    roots = [arguments.request.parent, arguments.models]
    pictures = []
    for picture in rendering.pictures:
        staged = {where: stage(value, where, roots, folder) for where, value in picture.control_images.items()}
        pictures.append(replace(picture, control_images=staged))
    return replace(rendering, pictures=tuple(pictures))


def _tell(rendering: Rendering) -> None:
    weights = rendering.weights.weights
    title, repository = find_model(rendering.model).title, find_model(rendering.model).files.repository
    source = f"the repository {repository}" if weights == DEFAULT else shown(weights)
    for note in (f"{title} from {source}, as {rendering.recipe!r} renders it", *rendering.notes):
        print(printable(note), file=sys.stderr)


def _write_workflow(path: Path, document: object, found: Found, rendering: Rendering) -> None:
    replace_file(path, json.dumps(document, indent=2) + "\n")
    copies = [(file.name, f"ComfyUI's folder {kind!r}") for kind, file in found.extra.items()]
    if any(picture.control_images for picture in rendering.pictures):
        copies.append((f"the pictures in {FOLDER!r}", "ComfyUI's input folder"))
    for what, target in copies:
        print(printable(f"For the workflow, copy {what} into {target}"), file=sys.stderr)
