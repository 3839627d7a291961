"""Runs a workflow document in this process, with the pack's nodes and the stand-ins of ComfyUI's core nodes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..nodes.host import PlainHost, use_host
from ..pipelines.errors import AITKError, FileError
from ..pipelines.pictures.saving import make_folder, replace_file
from ..pipelines.words import printable, shown
from .core_nodes import CORE_CLASSES, CORE_NAMES
from .execute import RunResult, check_prompt, run_prompt
from .validate import Declared
from .workflow import apply_sets, definitions_of, fill_in_names, is_editor_format, to_prompt


def run_document(document: dict[str, Any], host: PlainHost, sets: Sequence[str]) -> RunResult:
    """Converts, changes and runs a workflow of either format.

    Args:
        document: as :func:`.workflow.read_workflow` returns it.
        host: folders and device; it stays the process's host.
        sets: ``NODE.INPUT=VALUE`` each, see :func:`.workflow.apply_sets`.

    Raises:
        WorkflowError: see :func:`.execute.run_prompt`.
    """
    use_host(host)
    classes = _classes()
    definitions = definitions_of(classes, {**CORE_NAMES, **NODE_DISPLAY_NAME_MAPPINGS})
    prompt = fill_in_names(apply_sets(to_prompt(document, definitions), sets, definitions), document)
    return run_prompt(prompt, classes, extra_pnginfo={"workflow": document} if is_editor_format(document) else None)


def check_document(document: dict[str, Any], host: PlainHost) -> None:
    """Raises WorkflowError where a workflow in API format would not run with these folders; runs nothing."""
    use_host(host)
    check_prompt(document, Declared(_classes()))


def _classes() -> dict[str, Any]:
    return {**CORE_CLASSES, **NODE_CLASS_MAPPINGS}


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command; returns 0, 1 after an error of ours, which is printed, or 130 after Ctrl-C."""
    try:
        command()
    except AITKError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def option(flag: str, path: Path) -> str:
    """An option of the command line in a message, without the folders before the name."""
    return f"{flag} {shown(path.name or str(path))}"


def prepare_file(flag: str, path: Path) -> None:
    """Makes the folder of a file that is written in the end; before the run, whose pictures may take hours.

    Raises:
        FileError: the file's name is that of a folder, or its folder cannot be made.
    """
    if os.path.isdir(path):
        raise FileError(f"{option(flag, path)} is a folder. Name a file.")
    make_folder(path.parent, option(flag, path))


def write_report(
    path: Path, output: Path, images: Sequence[Path], reports: Mapping[str, Any], seconds: float, **more: Any
) -> None:
    """Writes what a command rendered as JSON: pictures below ``output``, reports by node id, and seconds."""
    content = {
        "images": [image.relative_to(output).as_posix() for image in images],
        "reports": reports,
        "seconds": round(seconds, 3),
        **more,
    }
    replace_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def saved_pictures(result: RunResult, output: Path) -> list[Path]:
    """The pictures that a run left in the output folder; previews are left out."""
    return [
        output / entry["subfolder"] / entry["filename"]
        for shown in result.outputs.values()
        for entry in shown.get("images") or ()
        if entry["type"] == "output"
    ]
