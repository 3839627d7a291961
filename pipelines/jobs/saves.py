"""The LoRAs that a training saved, by the step at which previews were rendered with them.

Source: AI Toolkit BaseSDTrainProcess.py save and clean_up_saves (27a03a91).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.header import FileStamp
from ..files.safetensors import read_header
from ..words import shown
from .job import JobCheckpoint

if TYPE_CHECKING:
    from .beginning import Beginning


@dataclass(frozen=True)
class Saves:
    """A job's LoRA files.

    Attributes:
        name: what the files' names begin with.
        files: step -> file; the last one's step is the one in its metadata, else the job's last.
        damaged: step -> name of a file that cannot be read.
        begin: how the training began.
        last_step: at which the training ends; 0 where the config does not say.
        final_step: of the last file, ``<name>.safetensors``; None where there is none.
        save_every: in steps; 0 is never.
        versions: step -> AI Toolkit's version by the file; those that say none are left out.
    """

    name: str
    files: Mapping[int, FileStamp]
    damaged: Mapping[int, str]
    begin: Beginning
    last_step: int
    final_step: int | None
    save_every: int
    versions: Mapping[int, str]

    @property
    def trained_with(self) -> str:
        """AI Toolkit's version by the latest file that says one."""
        return self.versions[max(self.versions)] if self.versions else ""

    @property
    def steps(self) -> list[int]:
        return sorted({*self.files, *self.damaged})

    def checkpoint(self, step: int, notes: list[str]) -> JobCheckpoint:
        """The state of the network at a step's previews; a note where its file is not there."""
        final = step == (self.last_step if self.final_step is None else self.final_step)
        file = self.files.get(step)
        if file is not None:
            return JobCheckpoint(step, final, file=file, trained_with=self.versions.get(step, ""))
        if step in (0, self.begin.step):
            return JobCheckpoint(step, final, base=not self.begin.lora, initial=self.begin.lora)
        if step in self.damaged:
            return JobCheckpoint(step, final, missing=self.damaged[step])
        if final or (self.save_every and step % self.save_every == 0):
            gone = f"{self.name}.safetensors" if final else f"{self.name}_{step:09d}.safetensors"
            notes.append(
                f"The LoRA of step {step}, {shown(gone)}, is gone: its previews have nothing to be rendered with."
            )
            return JobCheckpoint(step, final, missing=gone)
        notes.append(f"AI Toolkit saved no LoRA at step {step}: it saves every {self.save_every} steps.")
        return JobCheckpoint(step, final)


def find_saves(folder: Path, name: str, begin: Beginning, last_step: int, save_every: int, notes: list[str]) -> Saves:
    """Lists the LoRAs in a job's folder and reads their headers; a note for each that cannot be read.

    Args:
        folder: the job's.
        name: the job's.
        begin: how the training began.
        last_step, save_every: as the config has them, 0 where it does not say.
        notes: gets a sentence for each file that is skipped.
    """
    stem, found = _names(folder, name)
    files: dict[int, FileStamp] = {}
    damaged: dict[int, str] = {}
    versions: dict[int, str] = {}
    final_step = None
    for step, file in sorted(found.items(), key=lambda one: (one[0] is None, one[0])):
        place = last_step if step is None else step
        try:
            metadata = _metadata(folder / file, folder)
        except FileError as error:
            notes.append(f"The LoRA of step {place} was skipped: {error}")
            damaged.setdefault(place, file)
            continue
        if step is None:
            # a training that was continued has another last step than the one that this file was saved at
            place = _saved_step(metadata) or last_step
            final_step = place
        files[place] = FileStamp.of(folder / file)
        damaged.pop(place, None)
        versions.pop(place, None)
        if version := _version(metadata):
            versions[place] = version
    told = sorted(set(versions.values()))
    if len(told) > 1:
        notes.append(
            f"Several versions of AI Toolkit saved this job's LoRAs: {', '.join(told[:5])}. The previews of each are "
            "rendered as that version did."
        )
    return Saves(stem, files, damaged, begin, last_step, final_step, save_every, versions)


def _names(folder: Path, name: str) -> tuple[str, dict[int | None, str]]:
    """What the LoRAs' names begin with, and step -> name, None being the last one's.

    Where an embedding is trained as well, AI Toolkit puts ``_LoRA`` behind the job's name.
    """
    pattern = re.compile(re.escape(name) + r"(_LoRA)?(?:_(\d{9,12}))?\.safetensors", re.ASCII)
    found: dict[int | None, str] = {}
    stems: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match is not None and not entry.is_dir():
                found[int(match[2]) if match[2] else None] = entry.name
                stems.add(name + (match[1] or ""))
    return max(stems, default=name), found


def _metadata(path: Path, folder: Path) -> Mapping[str, str]:
    try:
        within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        within = False  # links that loop
    if not within:
        raise FileError(f"{shown(path.name)} is a link that leads out of the job's folder.")
    return read_header(path).metadata


def _saved_step(metadata: Mapping[str, str]) -> int:
    step = _object(metadata.get("training_info")).get("step")
    return step if isinstance(step, int) and 0 < step < 10**12 else 0


def _version(metadata: Mapping[str, str]) -> str:
    software = _object(metadata.get("software"))
    version = software.get("version")
    return version[:40] if software.get("name") == "ai-toolkit" and isinstance(version, str) else ""


def _object(text: str | None) -> Mapping[str, Any]:
    """The metadata of a file that anybody can write: what is no JSON object tells nothing."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
