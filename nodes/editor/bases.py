"""Which files Load AITK Model's choice means on this machine, and what tells them from others of their name.

Nothing large is read for it: a model has up to a hundred GB, and the editor asks whenever a graph is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import FileError
from ...pipelines.models import find_model
from ...pipelines.weights.choice import DEFAULT, Choice
from ..host import current_host
from ..load_model import AUTO
from ..shared import roots

if TYPE_CHECKING:
    from typing import BinaryIO

    from ...pipelines.engine.file_digests import FileDigests
    from ...pipelines.files.header import FileStamp
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.weights.source import Source

_HEADERS = (".safetensors", ".sft")
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
# two trainings of one model have headers that are equal to the byte, and are told apart by what stands at these places
_PLACES = 16
_PIECE = 1 << 16  # bytes
_DIGITS = 16


def base(query: Mapping[str, str]) -> dict[str, Any]:
    """The files of the loader's ``model``, ``weights``, ``repo_id``, ``text_encoder`` and ``vae``, part by part.

    ``{"parts": {"vae": {"choice": "ae.safetensors", "source": "ae.safetensors", "files": [{"name": "ae.safetensors",
    "bytes": 335304388, "sampled": "5ab0...", "sha256": null}]}}}``. ``choice`` is what the workflow says of the part,
    ``source`` its name in the sampler's report. ``sampled`` is 16 hex digits of the header and of 16 pieces of the
    file; ``sha256`` is None where that would have to be read from a large file. Of a repository the hub's cache is
    looked at; what is not there is left out.

    Raises:
        FileError, InputError: there is no such model or file.
    """
    # the readers of files are imported by the first question, not with the pack
    from ...pipelines.engine.file_digests import FileDigests
    from ...pipelines.weights.choose import sources_here

    weights, encoder, autoencoder = (query.get(name) or DEFAULT for name in ("weights", "text_encoder", "vae"))
    choice = Choice(weights, query.get("repo_id", ""), {"encoder": encoder, "autoencoder": autoencoder})
    digests = FileDigests(current_host().embeddings_folder)
    found = sources_here(_facts(query.get("model", ""), weights).files, choice, roots)
    return {"parts": {part: _part(source, choice, digests) for part, source in found.items()}}


def _facts(model: str, weights: str) -> ModelFacts:
    if model != AUTO:
        return find_model(model)
    from ...pipelines.models.telling import model_of

    return model_of(weights, roots)


def _part(source: Source, choice: Choice, digests: FileDigests) -> dict[str, Any]:
    own = choice.files.get(source.role, DEFAULT)
    # a part that a file of its role does not hold comes from the weights
    chosen = own if own == source.name else choice.weights
    if chosen == DEFAULT:
        chosen = choice.repo_id.strip() or DEFAULT
    files = [_file(stamp, digests) for stamp in source.weight_files]
    return {"choice": chosen, "source": source.name, "files": files}


def _file(stamp: FileStamp, digests: FileDigests) -> dict[str, Any]:
    from ...pipelines.engine.file_digests import LARGE
    from ...pipelines.run.report import digest

    sha256 = digest(stamp) if stamp.size <= LARGE else digests.told(stamp)
    return {"name": stamp.path.name, "bytes": stamp.size, "sampled": sampled(stamp), "sha256": sha256}


@lru_cache(maxsize=256)
def sampled(stamp: FileStamp) -> str:
    """16 hex digits of a file's header, where it is a safetensors file, and of 16 pieces of 64 KiB, from begin to end.

    Raises:
        FileError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with stamp.path.open("rb") as file:
            if stamp.path.suffix.lower() in _HEADERS:
                found.update(_header(file))
            for place in range(_PLACES):
                file.seek(max(0, stamp.size - _PIECE) * place // (_PLACES - 1))
                found.update(file.read(_PIECE))
    except OSError as error:
        raise FileError(f"{stamp.path.name!r} cannot be read: {error.strerror}.") from error
    return found.hexdigest()[:_DIGITS]


def _header(file: BinaryIO) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    return file.read(min(length, _LONGEST_HEADER))
