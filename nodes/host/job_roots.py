"""Folders of training jobs that the user configured outside of any workflow."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "AITK_JOBS_PATH"
KIND = "aitk_jobs"  # in ComfyUI's extra_model_paths.yaml


def roots_of_environment() -> list[Path]:
    """The folders of ``AITK_JOBS_PATH``, with the system's separator between them; none where it is not set."""
    return [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip()]
