"""The command ``demo``: from nothing to a picture through the pack's real nodes."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..nodes.host import PlainHost
from ..pipelines.errors import FileError
from ..pipelines.pictures.saving import make_folder
from .local import exit_status, option, run_document, saved_pictures
from .server import reports_in
from .workflow import read_workflow

_ROOT = Path(__file__).resolve().parent.parent
_WORKFLOW = "LoRA - Lumina Image 2.0.json"
_PLAIN_WORKFLOW = "Text to image - Lumina Image 2.0.json"
_TINY = "tiny-lumina2"
_TINY_LORA = "tiny-lora.safetensors"


def demo_command(argv: Sequence[str]) -> int:
    """Runs the demo; returns the exit status, see :func:`.local.exit_status`."""
    arguments = _parse(argv)
    return exit_status(lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> None:
    saved, report = _run(arguments)
    print(json.dumps(report, indent=1, ensure_ascii=False))
    for path in saved:
        print(f"\nThe picture, with the workflow and this report inside: {path}")
    if arguments.weights is None:
        print(
            "\nIt is noise-like: the model is tiny and its weights are random. The same on real weights:\n"
            "  python3 tasks.py demo --weights Alpha-VLLM/Lumina-Image-2.0 --lora YOUR_LORA.safetensors\n"
            "  python3 tasks.py demo --weights FOLDER     (a diffusers folder, with model_index.json)"
        )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tasks.py demo", description="Render one picture and say where it is.")
    parser.add_argument("--weights", help="hub id (owner/name) or a diffusers folder; default: a tiny random model")
    parser.add_argument("--lora", type=Path, help="a LoRA that AI Toolkit trained for these weights")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder (default: demo-output)")
    parser.add_argument("--device", help="cuda, mps, cpu, ... (default: the best there is)")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="replace an input")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> tuple[list[Path], dict[str, Any]]:
    make_folder(arguments.output, option("--output", arguments.output))
    models = arguments.output / "models"
    roots: dict[str, Path] = {}
    lora = arguments.lora
    if arguments.weights is None:
        _make_tiny(models)
        sets = [f"LoadAITKModel.weights={_TINY}", "AITKSampler.width=512", "AITKSampler.height=512"]
        lora = lora or models / "loras" / _TINY_LORA
    elif os.path.isdir(arguments.weights):
        folder = Path(arguments.weights).resolve()
        roots["diffusers"] = folder
        sets = [f"LoadAITKModel.weights={folder.name}"]
    elif arguments.weights.count("/") != 1 or arguments.weights.startswith(("/", ".", "~")):
        raise FileError(f"{option('--weights', Path(arguments.weights))} is no folder, and no hub id (owner/name).")
    else:
        sets = ["LoadAITKModel.weights=default", f"LoadAITKModel.repo_id={arguments.weights}"]
    if lora is not None:
        if not os.path.isfile(lora):
            raise FileError(f"{option('--lora', lora)} is no file.")
        roots["loras"] = lora.resolve()
        sets.append(f"ApplyAITKLoRA.lora_name={lora.name}")
    host = PlainHost(models, arguments.output, arguments.output, arguments.device, roots)
    document = read_workflow(_ROOT / "example_workflows" / (_PLAIN_WORKFLOW if lora is None else _WORKFLOW))
    result = run_document(document, host, [*sets, *arguments.set])
    (report,) = reports_in(result.outputs).values()
    return [path.resolve() for path in saved_pictures(result, arguments.output)], report


def _make_tiny(models: Path) -> None:
    from .tiny.lumina2 import make_checkpoint, make_lora

    checkpoint = models / "diffusers" / _TINY
    if not (checkpoint / "model_index.json").is_file():
        make_checkpoint(checkpoint)
    if not (models / "loras" / _TINY_LORA).is_file():
        make_lora(models / "loras" / _TINY_LORA, checkpoint, trigger_word="t1ny")
