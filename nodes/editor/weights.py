"""Which models' weights the choices of Load AITK Model hold, by headers and configurations alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...pipelines.errors import AITKError
from ...pipelines.files.header import FileStamp
from ...pipelines.weights.choice import DEFAULT, WEIGHTS, folders
from ...pipelines.weights.untrusted_names import resolve_name
from ..load_model import weights_names
from ..shared import roots

# those whose header is read without torch
_READ = (".safetensors", ".sft", ".gguf")
# seconds of reading for one answer; a header takes 30 to 80 ms, measured with 500 and 2,500 tensors
PATIENCE = 1.0

# name, its file, and the JSON beside it -> ids of the models
_known: dict[tuple[str, FileStamp, FileStamp | None], list[str]] = {}


def weights(_: Mapping[str, str]) -> dict[str, Any]:
    """What each choice of ``weights`` may hold, and how many are not read yet: ask again for those.

    ``{"weights": {"a.safetensors": ["flux2"], "b.safetensors": []}, "more": 0}``. A file is read once, as long as it
    stays the same. The model's own repository is left out, and so are pickles, whose headers are long to read.
    """
    end = time.monotonic() + PATIENCE
    found: dict[str, list[str]] = {}
    more = read = 0
    for name in weights_names():
        path = None if name == DEFAULT else _path(name)
        if path is None:
            continue
        if path.is_dir():
            found[name] = _models(name)
            continue
        key = (name, FileStamp.of(path), _overrides(path))
        if key not in _known:
            if read and time.monotonic() > end:
                more += 1
                continue
            read += 1
            _known[key] = _models(name)
        found[name] = _known[key]
    return {"weights": found, "more": more}


def _path(name: str) -> Path | None:
    """A folder, or a file whose header is read; None for others, and for what went away meanwhile."""
    try:
        path = resolve_name(name, folders(WEIGHTS, roots), "weights")
    except AITKError:
        return None
    return path if path.is_dir() or path.suffix.lower() in _READ else None


def _models(name: str) -> list[str]:
    """Ids of the models that it may be of; none where it is of no model, or damaged."""
    from ...pipelines.models.telling import models_of

    try:
        return [facts.id for facts in models_of(name, roots)]
    except AITKError:
        return []


def _overrides(path: Path) -> FileStamp | None:
    """The stamp of the JSON beside a file, which says what its tensors do not."""
    from ...pipelines.weights.single_file import OVERRIDES

    beside = path.with_suffix(OVERRIDES)
    return FileStamp.of(beside) if beside.is_file() else None
