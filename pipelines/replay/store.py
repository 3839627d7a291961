"""Finished cells on the disk: a PNG and its report under the cell's key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pictures.saving import make_folder, remove_leftovers, replace_file

_DIGEST = "picture_sha256"


class CellStore:
    """A folder of finished cells. A report is written last, with its picture's digest: a cell is whole or not there.

    Args:
        folder: made where it is missing.

    Raises:
        FileError: it cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder, "The replay's folder")
        remove_leftovers(folder)
        self._folder = folder

    def picture(self, key: str) -> Path:
        """Where a cell's picture is, once it is finished."""
        return self._folder / f"{key}.png"

    def find(self, key: str) -> Mapping[str, Any] | None:
        """A finished cell's report; None where the cell is not finished, or one of its files was changed since."""
        try:
            report = json.loads(self._report(key).read_bytes())
            picture = self.picture(key).read_bytes()
        except (OSError, ValueError):
            return None
        whole = isinstance(report, dict) and report.get(_DIGEST) == hashlib.sha256(picture).hexdigest()
        return report if whole else None

    def keep(self, key: str, picture: bytes, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps a finished cell; returns its report as it is kept.

        Args:
            key: the cell's.
            picture: a PNG file.
            report: of its run, JSON-able.

        Raises:
            FileError: it cannot be written, e.g. because the disk is full.
        """
        kept = {**report, _DIGEST: hashlib.sha256(picture).hexdigest()}
        replace_file(self.picture(key), picture)
        replace_file(self._report(key), json.dumps(kept, indent=1, ensure_ascii=False))
        return kept

    def _report(self, key: str) -> Path:
        return self._folder / f"{key}.json"
