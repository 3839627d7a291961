"""The trainer's pictures in a job's folder, by the names that it gives them.

Source: AI Toolkit BaseSDTrainProcess.py sample, config_modules.py GenerateImageConfig (27a03a91).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.header import FileStamp
from ..words import shown
from .job import JobPreview

# milliseconds, step, index: two underscores after the time, and the index is not padded
_PREVIEW = re.compile(r"(\d{1,18})__(\d{9,12})_(\d{1,6})\.(jpe?g|png|webp|bmp)", re.IGNORECASE | re.ASCII)
_MOST_NAMED = 5


@dataclass(frozen=True, order=True)
class Picture:
    """A picture's name, read: they sort by the time at which they were saved.

    Attributes:
        time: milliseconds since 1970.
        step: of the round.
        index: of the sample.
        path: the file.
    """

    time: int
    step: int
    index: int
    path: Path


def find_pictures(folder: Path, notes: list[str]) -> list[Picture]:
    """All of a job's pictures, the earliest first; a note where files are skipped, or there are none."""
    found: list[Picture] = []
    skipped: list[str] = []
    for path in _files(folder / "samples", folder, skipped):
        match = _PREVIEW.fullmatch(path.name)
        if match is None:
            skipped.append(path.name)
        else:
            time, step, index = (int(one) for one in match.groups()[:3])
            found.append(Picture(time, step, index, path))
    if skipped:
        named = ", ".join(shown(name, 60) for name in sorted(skipped)[:_MOST_NAMED])
        more = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
        notes.append(f"In samples, {named}{more} cannot be read as the trainer's pictures and were skipped.")
    if not found:
        notes.append("The folder has none of the trainer's previews.")
    return sorted(found)


def latest(pictures: Sequence[Picture]) -> tuple[JobPreview, ...]:
    """The latest picture of each step and index; ``pictures`` are in the order of time."""
    newest = {(one.step, one.index): one.path for one in pictures}
    return tuple(JobPreview(*place, FileStamp.of(newest[place])) for place in sorted(newest))


def inside(path: Path, folder: Path) -> bool:
    """Whether a file is there and, with its links followed, within the folder."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False  # links that loop


def _files(folder: Path, job: Path, skipped: list[str]) -> Iterator[Path]:
    """The files of a folder of the job that hold something; hidden ones are left out."""
    if not folder.is_dir() or not folder.resolve().is_relative_to(job.resolve()):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.is_dir():
                continue
            if (entry.is_symlink() and not inside(path, job)) or not entry.is_file() or not entry.stat().st_size:
                skipped.append(entry.name)
            else:
                yield path
