"""Texts that were encoded in this process or in another one, in a folder: a file for each, under the key of all that
decides it.

Neither the text nor a path is in the file or in its name. Any number of processes may use one folder, and whatever goes
wrong with it, a run goes on as if there were none.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError
from ..files.header import FileStamp, TensorInfo
from ..files.safetensors import read_header, read_tensors
from ..parts.encoder import Embedding
from ..pictures.saving import reason, remove_leftovers, replace_file
from .embedding_identity import SCHEMA, identity
from .file_digests import SUFFIX, FileDigests

if TYPE_CHECKING:
    import torch

    from ..observer import Observer
    from ..options import DType
    from .embeddings import EmbeddingKey

MOST_BYTES = 10**9  # of all files together
_NAME = re.compile(rf"[0-9a-f]{{64}}(\.safetensors|{re.escape(SUFFIX)})")
_DTYPES: dict[DType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_LARGE = 1 << 26  # bytes of files whose reading is worth a word


class StoredEmbeddings:
    """The embeddings of a folder; the least used leave first.

    Args:
        folder: where they are; None is nowhere. It is made when it is first needed.
        most_bytes: of all files together.

    Attributes:
        trouble: why something could not be kept since the last :meth:`find`; empty where nothing went wrong.
    """

    def __init__(self, folder: Callable[[], Path | None], most_bytes: int = MOST_BYTES) -> None:
        self.trouble = ""
        self._folder = folder
        self._most = most_bytes
        self._digests = FileDigests(folder)
        self._names: dict[EmbeddingKey, str] = {}

    def find(self, keys: Iterable[EmbeddingKey], observer: Observer) -> dict[EmbeddingKey, Embedding]:
        """Those that are there and whole.

        Args:
            keys: of what the run needs; what is encoded of them may be kept afterwards.
            observer: told where files are read whole for the first time, asked for interruption.
        """
        self.trouble = ""
        folder = self._folder()
        names = {} if folder is None else {key: self._name(key, observer) for key in keys}
        self._names = {key: name for key, name in names.items() if name}
        found = {}
        for key, name in self._names.items():
            if folder is not None and (embedding := _read(folder / name, key[0].dtype, self._most)) is not None:
                found[key] = embedding
        return found

    def keep(self, key: EmbeddingKey, embedding: Embedding) -> None:
        """Writes what was looked for and not found."""
        folder, name = self._folder(), self._names.get(key)
        if folder is None or name is None:
            return
        content = _written(embedding)
        if len(content) > self._most:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, content)
        except OSError as error:
            self.trouble = reason(error)
        except FileError as error:
            cause = error.__cause__
            self.trouble = reason(cause) if isinstance(cause, OSError) else str(error)
        else:
            self._tidy(folder)

    def _name(self, key: EmbeddingKey, observer: Observer) -> str | None:
        """Of an embedding's file; None where it can have none."""

        def digest(stamp: FileStamp) -> str:
            if stamp.size > _LARGE and not self._digests.knows(stamp):
                observer.stage(f"reading {key[0].part} of {key[0].source.name} once, to know it again")
            return self._digests.of(stamp, observer.check)

        try:
            return f"{identity(key, digest)}.safetensors"
        except (FileError, OSError, TypeError):
            # what is wrong with a file, whoever needs it says
            return None

    def _tidy(self, folder: Path) -> None:
        """Removes what was not used for the longest time, as much as there is too much of; never another's file."""
        remove_leftovers(folder)
        found: list[tuple[int, int, Path]] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    with suppress(OSError):
                        about = entry.stat(follow_symlinks=False)
                        found.append((about.st_mtime_ns, about.st_size, Path(entry.path)))
        size = sum(own for _, own, _ in found)
        for _, own, path in sorted(found):
            if size <= self._most:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                size -= own


def _read(path: Path, dtype: DType, most_bytes: int = MOST_BYTES) -> Embedding | None:
    """What a file holds; None where there is none, or one that is no such file, which is removed."""
    try:
        about = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    try:
        if about.st_size > most_bytes:
            # whatever it is, it is not read to find out
            raise ValueError("too large")
        embedding = _checked(path, dtype)
    except (FileError, ValueError):
        with suppress(OSError):
            path.unlink()
        return None
    # it was used now
    with suppress(OSError):
        os.utime(path)
    return embedding


def _checked(path: Path, dtype: DType) -> Embedding:
    """Raises FileError or ValueError where the file is damaged, or another one than was written."""
    header = read_header(path)
    own = header.tensors
    shapes = {name: info.shape for name, info in own.items()}
    kinds = {"embeds": _DTYPES[dtype], "mask": "I64", "pooled": own.get("pooled", TensorInfo("", ())).dtype}
    if not {"embeds", "mask"} <= own.keys() <= kinds.keys() or any(own[name].dtype != kinds[name] for name in own):
        raise ValueError("other tensors")
    if len(shapes["embeds"]) != 3 or shapes["mask"] != shapes["embeds"][:2]:
        raise ValueError("other shapes")
    cut = header.metadata.get("cut_tokens", "")
    if not re.fullmatch(r"\d{1,9}", cut, re.ASCII):
        raise ValueError("no count of tokens")
    tensors = dict(read_tensors(path))
    if header.metadata.get("sha256") != _digest(tensors, cut):
        raise ValueError("other values")
    return Embedding(tensors["embeds"], tensors["mask"], int(cut), tensors.get("pooled"))


def _written(embedding: Embedding) -> bytes:
    from safetensors.torch import save

    tensors = {"embeds": embedding.embeds, "mask": embedding.mask}
    if embedding.pooled is not None:
        tensors["pooled"] = embedding.pooled
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    cut = str(embedding.cut_tokens)
    return save(tensors, {"schema": str(SCHEMA), "cut_tokens": cut, "sha256": _digest(tensors, cut)})


def _digest(tensors: dict[str, torch.Tensor], cut_tokens: str) -> str:
    """Of everything that is in a file; a header does not tell of a flipped bit."""
    import torch

    digest = hashlib.sha256(cut_tokens.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
