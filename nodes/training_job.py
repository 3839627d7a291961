"""A training job of AI Toolkit: its folder to a value and a pipeline, and its previews once more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..pipelines.amounts import size
from ..pipelines.errors import FileError, InputError
from ..pipelines.jobs.job import TrainingJob
from ..pipelines.machine.ram import total_ram
from ..pipelines.models import find_model
from ..pipelines.weights.choice import DEFAULT
from ..pipelines.weights.untrusted_names import list_folders_with, resolve_name
from ..pipelines.words import printable, shown
from .host import current_host
from .job_model import job_pipeline, with_initial_lora
from .load_model import weights_names
from .observer import NodeObserver
from .page_pairs import PagePairs
from .shared import CATEGORY, check_pipeline, check_texts, search_words

if TYPE_CHECKING:
    from pathlib import Path

    from ..pipelines.compare.pixels import Pixels
    from ..pipelines.handle import PipelineHandle
    from ..pipelines.replay.judge import Judged
    from ..pipelines.replay.selection import Selection

_MARKERS = ("config.yaml", ".job_config.json")
_NO_JOB = "no training job yet"  # an empty list shows as "undefined"
_SHOWN_CHECKPOINTS = 30
_SHOWN_ERRORS = 3
_BYTES_OF_PIXEL = 2 * 3 * (4 + 1)  # ours and the trainer's, in float32 and as they were read


class AITKTrainingJob:
    """A job's folder to a job and a pipeline. Neither pictures nor weights are read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folders = current_host().job_roots()
        jobs = [name for marker in _MARKERS for name in list_folders_with(folders, marker)]
        return {
            "required": {
                "job": (
                    list(dict.fromkeys(jobs)) or [_NO_JOB],
                    {
                        "tooltip": "AI Toolkit's folder of the job (output/<name>), with its config and samples: below "
                        "ComfyUI's input folder, AITK_JOBS_PATH, or aitk_jobs of extra_model_paths.yaml."
                    },
                ),
                "weights": (
                    weights_names(),
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the Hugging Face repository that the job names. Others: model folders and "
                        "files as on Load AITK Model; needed where the job names a path of the trainer's machine.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("AITK_JOB", "AITK_PIPELINE", "STRING")
    RETURN_NAMES = ("job", "pipeline", "summary")
    OUTPUT_TOOLTIPS = (
        "The job: its prompts, seeds, sizes, checkpoints and pictures.",
        "The model as the job loads it: dtype, quantisation of both parts, training adapter. Without the job's LoRA.",
        "What the folder holds, and what of it was skipped.",
    )
    FUNCTION = "open"
    CATEGORY = CATEGORY
    DESCRIPTION = "Opens the folder of a training job: what it sampled, with which checkpoints, on which model."
    SEARCH_ALIASES = search_words("ai toolkit job", "ostris", "training job", "replay", "sample previews")

    @classmethod
    def VALIDATE_INPUTS(cls, job: str | None = None) -> bool | str:
        """Refuses a name that is not there or not allowed when the prompt is queued; a linked name waits."""
        if job is None:
            return True
        try:
            _folder(job)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, job: str | None = None, **_: Any) -> str:
        """A job that goes on has other pictures and checkpoints."""
        # None: linked, and not known yet. Its value names every file with its time and size
        return "" if job is None else repr(_open(job))

    def open(
        self, job: str, weights: str = DEFAULT, unique_id: str | None = None
    ) -> tuple[TrainingJob, PipelineHandle, str]:
        check_texts({"job": job, "weights": weights})
        opened = with_initial_lora(_open(job))
        with NodeObserver(current_host(), unique_id, "opening the job") as observer:
            pipeline, notes = job_pipeline(opened, weights, observer)
        return opened, pipeline, summary(opened, notes)


class AITKReplayPreviews:
    """A job's previews, rendered again beside the trainer's own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "job": ("AITK_JOB", {"tooltip": "From AITK Training Job."}),
                "pipeline": (
                    "AITK_PIPELINE",
                    {"tooltip": "From AITK Training Job; the job's LoRAs are added by this node."},
                ),
                "checkpoints": (
                    "STRING",
                    {"default": "last", "tooltip": "all, last, or steps with commas between: 250,500. 0 is the base."},
                ),
                "samples": (
                    "STRING",
                    {"default": "all", "tooltip": "all, or places in the job's list of samples, from 0: 0,2."},
                ),
                "strengths": (
                    "STRING",
                    {
                        "default": "1.0",
                        "tooltip": "Times the job's own multiplier, with commas between: 0.5,1.0. Only 1.0 has a "
                        "picture of the trainer's beside it.",
                    },
                ),
                "measure_floor": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "Renders what is near the trainer's picture, and not it, again with other kernels, "
                        "one kind after the other: only then can the verdict be 'equal up to kernel noise'.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("ours", "trainer", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Our pictures, by checkpoint, sample and strength.",
        "The trainer's pictures in the same order; black where there is none.",
        "All of them in a labelled table, with the places where they differ.",
        "JSON: for each picture the verdict, the numbers, likely causes, and everything that decided it.",
    )
    FUNCTION = "replay"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Renders a job's sample pictures again, with its own prompts, seeds, sizes and checkpoints, and says how near "
        "they are to the trainer's. What is finished stays on the disk: a cancelled replay goes on where it stopped."
    )
    SEARCH_ALIASES = search_words("replay", "compare checkpoints", "sample previews", "contact sheet", "ostris")

    def replay(
        self,
        job: TrainingJob,
        pipeline: PipelineHandle,
        checkpoints: str = "last",
        samples: str = "all",
        strengths: str = "1.0",
        measure_floor: bool = True,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        if not isinstance(job, TrainingJob):
            raise InputError("job is no AITK_JOB. Connect AITK Training Job.")
        check_pipeline(pipeline)
        check_texts({"checkpoints": checkpoints, "samples": samples, "strengths": strengths})
        host = current_host()
        latent_format = find_model(pipeline.model).latent.format
        with NodeObserver(host, unique_id, "importing PyTorch and diffusers", latent_format) as observer:
            # torch and diffusers are imported by the first run, not by the pack
            from ..pipelines.compare.sheet import check_cells
            from ..pipelines.replay.replay import replay
            from ..pipelines.replay.report import replay_report
            from ..pipelines.replay.selection import select
            from ..pipelines.replay.store import CellStore
            from ..pipelines.replay.views import SheetTable, as_batch, to_batch
            from .sampler import engine

            selection = select(job, checkpoints, samples, strengths)
            seen = _Seen(PagePairs(host.page_folder()))
            table = SheetTable.of(selection)
            # before hours of rendering
            check_cells(len(table.rows), len(table.columns))
            _check_memory(selection)
            store = CellStore(host.replay_folder())
            judged = replay(
                engine(), job, pipeline, selection, host.input_folder(), store, observer,
                measure_floor=bool(measure_floor),
            )  # fmt: skip
            sheet = table.draw(table.cells(seen.noting(judged)))
        if not seen.rendered:
            raise InputError(f"No picture of job {shown(job.name)} could be rendered. {seen.error}")
        host.show_text(unique_id, seen.said())
        report = json.dumps(replay_report(job, pipeline, seen.reports), ensure_ascii=False, indent=1)
        pictures = to_batch(seen.ours), to_batch(seen.trainers, like=seen.ours)
        return {"ui": seen.pairs.ui(), "result": (*pictures, as_batch(sheet), report)}


class _Seen:
    """What the node hands on of each cell as it is drawn on the contact sheet."""

    def __init__(self, pairs: PagePairs) -> None:
        self.pairs = pairs
        self.ours: list[Pixels | None] = []
        self.trainers: list[Pixels | None] = []
        self.reports: list[dict[str, Any]] = []
        self._errors: Counter[str] = Counter()

    def noting(self, judged: Iterable[Judged]) -> Iterator[Judged]:
        from ..pipelines.replay.report import cell_report

        for one in judged:
            report = cell_report(one)
            self.reports.append(report)
            strength = "" if report["strength"] is None else f", strength {report['strength']:g}"
            title = f"step {report['step']}, sample {report['index']}{strength}"
            self._errors.update([one.outcome.error] if one.outcome.error else [])
            if one.outcome.picture is not None:
                self.ours.append(one.ours())
                self.trainers.append(one.trainers())
                self.pairs.add(title, report["verdict_words"], self.trainers[-1], self.ours[-1], one.comparison)
            yield one

    @property
    def rendered(self) -> bool:
        return bool(self.ours)

    @property
    def error(self) -> str:
        """The first errors, with the number of pictures where there are several."""
        first = list(self._errors.items())[:_SHOWN_ERRORS]
        said = [f"{count} pictures: {error}" if count > 1 else error for error, count in first]
        more = len(self._errors) - len(first)
        return " ".join([*said, f"{more} more reasons are in the report."] if more > 0 else said)

    def said(self) -> str:
        """How many cells came to what, and the first errors."""
        counts = Counter(report["verdict"] for report in self.reports)
        text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return f"{text}. {self.error}" if self._errors else text


def _check_memory(selection: Selection) -> None:
    """Refuses more pictures than this machine can hold at once, which is what an IMAGE is.

    Raises:
        InputError: says how much they need.
    """
    there = [one for one in selection.checkpoints if one.file is not None or one.base]
    samples = [sample for one in there for sample in selection.at(one)]
    count = len(samples) * len(selection.strengths)
    height, width = (max((getattr(one, side) for one in samples), default=0) for side in ("height", "width"))
    needed, ram = count * height * width * _BYTES_OF_PIXEL, total_ram()
    if needed > ram:
        raise InputError(
            f"{count:,} pictures of up to {width} x {height} and the trainer's need {size(needed)} of memory as IMAGE, "
            f"and this computer has {size(ram)}. Choose fewer checkpoints or samples at a time, or run "
            "'python3 tasks.py replay', which holds one at a time."
        )


def summary(job: TrainingJob, notes: Iterable[str]) -> str:
    """What a job's folder holds, a line each."""
    steps = ", ".join(f"{one.step}{' (gone)' if one.missing else ''}" for one in job.checkpoints[:_SHOWN_CHECKPOINTS])
    more = len(job.checkpoints) - _SHOWN_CHECKPOINTS
    lines = [
        f"{job.name}: {job.model.arch} on {job.model.name_or_path}, {job.model.dtype}",
        f"{len(job.samples)} samples, {len(job.previews)} pictures of the trainer's",
        f"checkpoints: {steps}{f' and {more} more' if more > 0 else ''}",
        f"trained with AI Toolkit {job.trained_with or 'of an unknown version'}",
        *(f"{one.index}: {one.problem}" for one in job.samples if one.problem),
        *job.notes,
        *notes,
    ]
    return printable("\n".join(lines))


def _open(name: str) -> TrainingJob:
    from ..pipelines.jobs.folder import open_job

    return open_job(_folder(name))


def _folder(name: str) -> Path:
    if name == _NO_JOB:
        raise FileError(
            "No job is chosen: there is no folder of a training job here. Put AI Toolkit's folder output/<name> in "
            "ComfyUI's input folder, or name the folder of all jobs in AITK_JOBS_PATH, press R in the editor, and "
            "choose it."
        )
    return resolve_name(name, current_host().job_roots(), "job")
