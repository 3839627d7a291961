"""The command ``replay``: a training job's pictures once more, with page, contact sheet and report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..nodes.host import PlainHost, use_host
from ..nodes.job_model import job_pipeline, with_initial_lora
from ..nodes.observer import NodeObserver
from ..nodes.sampler import engine
from ..nodes.training_job import summary
from ..pipelines.errors import FileError
from ..pipelines.jobs.folder import open_job
from ..pipelines.pictures.saving import make_folder, replace_file
from ..pipelines.weights.choice import DEFAULT
from ..pipelines.words import printable
from .local import exit_status, option, prepare_file
from .on_cluster import add_ray_arguments, chosen_cluster
from .oracle import add_oracle_arguments, chosen_oracle, tell_oracle
from .replay_page.page import write_page

if TYPE_CHECKING:
    from ..pipelines.compare.sheet import Cell as SheetCell
    from ..pipelines.jobs.job import TrainingJob
    from ..pipelines.oracle.beside import Beside
    from ..pipelines.replay.cell import Place
    from ..pipelines.replay.judge import Judged
    from ..pipelines.replay.selection import Selection
    from ..pipelines.replay.views import SheetTable

_EXAMPLE = (
    Path(__file__).resolve().parent.parent / "example_workflows" / "AI Toolkit training job - replay its samples.json"
)
_FOLDERS = ("ours", "trainer", "engine", "heat_map")


def replay_command(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit status.

    0: every chosen cell is rendered; 1: not all are, or an error, which is printed; 2: wrong arguments (raised as
    SystemExit by argparse); 130: Ctrl-C, after which the same command goes on where it stopped.
    """
    arguments, status = _parse(argv), [0]

    def run() -> None:
        status[0] = _run(arguments)

    return exit_status(run) or status[0]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tasks.py replay", description="Render a training job's sample pictures again, beside the trainer's own."
    )
    parser.add_argument("job", type=Path, metavar="JOB_DIR", help="AI Toolkit's folder of the job, output/<name>")
    parser.add_argument("--models", type=Path, required=True, help="folder with ComfyUI's layout: diffusers, ...")
    parser.add_argument("--output", type=Path, required=True, help="folder for pictures, page and report")
    parser.add_argument("--weights", default=DEFAULT, help="a name below diffusers (default: the job's repository)")
    parser.add_argument("--checkpoints", default="all", help="all, last, or steps: 250,500 (default: all)")
    parser.add_argument("--samples", default="all", help="all, or places in the job's list: 0,2 (default: all)")
    parser.add_argument("--strengths", default="1.0", help="times the job's own multiplier: 0.5,1.0 (default: 1.0)")
    parser.add_argument(
        "--no-floor", action="store_true", help="do not render again, with other kernels, what is not the trainer's"
    )
    add_oracle_arguments(parser)
    parser.add_argument("--workflow", type=Path, metavar="FILE", help="write the workflow that renders the first cell")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu, ... (default: the best there is)")
    add_ray_arguments(parser)
    return parser.parse_args(argv)


@dataclass
class _Written:
    """The replay's files, written as its cells are judged.

    Attributes:
        folder: of the report.
        cells: the report's.
    """

    folder: Path
    cells: list[dict[str, Any]] = field(default_factory=list)

    def each(self, judged: Iterable[Judged]) -> Iterator[Judged]:
        """Writes a cell's pictures, and passes it on."""
        from ..pipelines.replay.report import cell_report

        for one in judged:
            self.cells.append(cell_report(one, self._files(one)))
            yield one

    def each_beside(self, cells: Iterable[Beside]) -> Iterator[Beside]:
        """The same for cells that AI Toolkit's engine was asked for."""
        from ..pipelines.oracle.beside import oracle_report
        from ..pipelines.replay.report import cell_report

        for one in cells:
            files = self._files(one.judged, one.witness.picture)
            self.cells.append(cell_report(one.judged, files) | {"oracle": oracle_report(one)})
            yield one

    def _files(self, one: Judged, engine: Path | None = None) -> dict[str, str | None]:
        from ..pipelines.compare.pixels import encoded

        name = _name(one.outcome.place)
        heat_map = one.comparison and one.comparison.heat_map
        preview = None if one.preview is None or one.problem else one.preview.file.path
        return {
            "ours": self._write("ours", f"{name}.png", one.outcome.picture and one.outcome.picture.read_bytes()),
            "trainer": self._write("trainer", name + preview.suffix.lower(), preview.read_bytes()) if preview else None,
            "engine": self._write("engine", f"{name}.png", engine and engine.read_bytes()),
            "heat_map": self._write("heat_map", f"{name}.png", None if heat_map is None else encoded(heat_map, "png")),
        }

    def _write(self, kind: str, name: str, content: bytes | None) -> str | None:
        if content is None:
            return None
        replace_file(self.folder / kind / name, content)
        return f"{kind}/{name}"


def _run(arguments: argparse.Namespace) -> int:
    output = arguments.output
    if not os.path.isdir(arguments.models):
        raise FileError(f"{option('--models', arguments.models)} is no folder. It holds diffusers, loras, ...")
    oracle, cluster = chosen_oracle(arguments), chosen_cluster(arguments)
    # a command line names any folder; a workflow does not
    job = open_job(arguments.job.resolve())
    if arguments.workflow:
        prepare_file("--workflow", arguments.workflow)
    host = PlainHost(arguments.models, arguments.job.resolve(), output, arguments.device)
    use_host(host)
    job = with_initial_lora(job)
    for folder in (output, *(output / kind for kind in _FOLDERS)):
        make_folder(folder, option("--output", arguments.output))
    with NodeObserver(host, None, "opening the job") as observer:
        from ..pipelines.oracle.beside import sheet_cells
        from ..pipelines.replay.replay import replay
        from ..pipelines.replay.report import replay_report
        from ..pipelines.replay.selection import select
        from ..pipelines.replay.store import CellStore
        from ..pipelines.replay.views import SheetTable

        selection = select(job, arguments.checkpoints, arguments.samples, arguments.strengths)
        if arguments.workflow:
            _write_workflow(arguments.workflow, arguments, job, selection)
        pipeline, notes = job_pipeline(job, arguments.weights, observer)
        print(summary(job, notes), file=sys.stderr)
        written, store = _Written(output), CellStore(host.replay_folder())
        floor = not arguments.no_floor
        if cluster is None:
            judged = replay(
                engine(), job, pipeline, selection, host.input_folder(), store, observer, measure_floor=floor
            )
        else:
            judged = cluster.replay(job, pipeline, engine().device, store, observer, measure_floor=floor)
        table = SheetTable.of(selection)
        if oracle is None:
            drawn = table.cells(written.each(judged))
        else:
            # ours are all in the store; the engine may need the device's memory
            engine().release()
            beside = oracle.ask(job, selection, judged, store, observer)
            drawn = sheet_cells(table, written.each_beside(beside))
        _draw_sheet(output / "contact_sheet.png", table, drawn, with_engine=oracle is not None)
    report = replay_report(job, pipeline, written.cells)
    replace_file(output / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_page(report, output, output / "replay.html")
    return _tell(report, output)


def _draw_sheet(path: Path, table: SheetTable, cells: Iterator[SheetCell], *, with_engine: bool) -> None:
    """Draws the contact sheet, or goes through the cells alone where they are too many for one."""
    import io

    from ..pipelines.compare.sheet import MAX_CELLS

    if len(table.rows) * len(table.columns) > MAX_CELLS:
        count = sum(1 for _ in cells)
        print(f"{count:,} cells are too many for a contact sheet; the page has them all", file=sys.stderr)
        return
    file = io.BytesIO()
    table.draw(cells, with_engine=with_engine).save(file, "PNG")
    replace_file(path, file.getvalue())


def _tell(report: dict[str, Any], output: Path) -> int:
    """Prints what came of it; returns the exit status."""
    failed = [cell for cell in report["cells"] if cell["error"] is not None]
    for cell in failed:
        where = f"step {cell['step']}, sample {cell['index']}"
        print(printable(f"not rendered: {where}: {cell['error']}"), file=sys.stderr)
    for verdict, count in Counter(cell["verdict"] for cell in report["cells"]).items():
        print(f"{count} {verdict}")
    tell_oracle(report["cells"])
    print(output / "replay.html")
    return 1 if failed else 0


def _name(place: Place) -> str:
    """A cell's file, named as AI Toolkit names its own, without the time."""
    times = "" if place.strength == 1 else f"_x{place.strength:g}"
    return f"{place.step:09}_{place.index}{times}"


def _write_workflow(path: Path, arguments: argparse.Namespace, job: TrainingJob, selection: Selection) -> None:
    """The shipped example with the first chosen cell in its widgets; the job belongs into ComfyUI's input folder."""
    document = json.loads(_EXAMPLE.read_text("utf-8"))
    step, index = selection.checkpoints[0].step, next(iter(selection.columns))
    cell = [str(step), str(index), f"{selection.strengths[0]:g}", not arguments.no_floor]
    for node in document["nodes"]:
        if node["type"] == "AITKTrainingJob":
            node["widgets_values"] = [job.folder.name, arguments.weights]
        if node["type"] == "AITKReplayPreviews":
            node["widgets_values"] = cell
    replace_file(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
