"""At which steps a training was taken up again, by the logs that AI Toolkit's web interface keeps.

Each start has a log of its own: ``log.txt`` is the latest, ``logs/0_log.txt`` the first. A training on the command line
leaves none in the folder.

Sources: AI Toolkit ui/cron/actions/startJob.ts, BaseSDTrainProcess.py load_training_state_from_metadata (27a03a91).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..pictures.saving import reason
from .previews import inside

_LOG, _FOLDER = "log.txt", "logs"
_EARLIER = re.compile(r"(\d{1,6})_log\.txt", re.ASCII)
_LONGEST = 8 << 20  # bytes that are read of a log: it says so before the training begins
_TAKEN_UP = re.compile(rb"Found step (\d{1,12}) in metadata, starting from there")


def read_restarts(folder: Path, notes: list[str]) -> tuple[int, ...]:
    """The steps at which a process took the training up again, in order; empty where no log of the folder tells of one.

    Args:
        folder: the job's.
        notes: gets a sentence for each log that cannot be read.
    """
    found = (_TAKEN_UP.search(_read(path, notes)) for path in _logs(folder))
    return tuple(int(one[1]) for one in found if one)


def _logs(folder: Path) -> list[Path]:
    earlier: list[tuple[int, Path]] = []
    if (folder / _FOLDER).is_dir():
        with os.scandir(folder / _FOLDER) as entries:
            for entry in entries:
                if match := _EARLIER.fullmatch(entry.name):
                    earlier.append((int(match[1]), folder / _FOLDER / entry.name))
    paths = [path for _, path in sorted(earlier)] + [folder / _LOG]
    return [path for path in paths if inside(path, folder)]


def _read(path: Path, notes: list[str]) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({reason(error)}): it may tell of a restart of the training.")
        return b""
