"""Texts that were encoded in this process or in another one, in a folder: a file for each, under the key of all that
decides it.

Neither the text nor a path is in the file or in its name. Any number of processes may use one folder, and whatever goes
wrong with it, a run goes on as if there were none.

The key holds digests of the text encoder's files, up to 48 GB. No run waits for them. For a large file that was never
read whole there is nothing to be found, unless it is a copy of one that was: then the text is encoded, which reads the
file as well. The digest is made when the run is over, in a thread of its own, and then the embedding is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.header import FileStamp, TensorInfo
from ..files.safetensors import read_header, read_tensors
from ..parts.encoder import Embedding
from ..pictures.saving import reason, remove_leftovers, replace_file
from .embedding_identity import SCHEMA, Digest, identity, machine_of
from .file_digests import LARGE, SUFFIX, FileDigests

if TYPE_CHECKING:
    import torch

    from ..options import DType
    from .embeddings import EmbeddingKey

MOST_BYTES = 10**9  # of all files together
_NAME = re.compile(rf"[0-9a-f]{{64}}(\.safetensors|{re.escape(SUFFIX)})")
_DTYPES: dict[DType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

_Waiting = tuple["EmbeddingKey", Mapping[str, Any], Embedding]


class _NotReadYetError(Exception):
    """A large file was never read whole."""


class StoredEmbeddings:
    """The embeddings of a folder; the least used leave first.

    Args:
        folder: where they are; None is nowhere. It is made when it is first needed.
        most_bytes: of all files together.

    Attributes:
        digests: of the text encoders' files, and of whatever else somebody asks for.
    """

    def __init__(self, folder: Callable[[], Path | None], most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most_bytes
        self.digests = FileDigests(folder)
        self._trouble = ""
        # of what was looked for last
        self._names: dict[EmbeddingKey, str] = {}
        self._unnamed: dict[EmbeddingKey, Mapping[str, Any]] = {}
        self._waiting: list[_Waiting] = []
        self._finishing = threading.Lock()

    def find(self, keys: Iterable[EmbeddingKey]) -> dict[EmbeddingKey, Embedding]:
        """Those that are there and whole; what is encoded of the others may be kept afterwards."""
        self._names, self._unnamed, found = {}, {}, {}
        folder = self._folder()
        if folder is None:
            return found
        for key in keys:
            machine = machine_of(key[3])
            try:
                name = self._names[key] = _name(key, machine, self._soon)
            except _NotReadYetError:
                self._unnamed[key] = machine
            except (FileError, OSError, TypeError):
                # it can have none; what is wrong with a file, whoever needs it says
                continue
            else:
                if (embedding := _read(folder / name, key[0].dtype, self._most)) is not None:
                    found[key] = embedding
        return found

    def keep(self, key: EmbeddingKey, embedding: Embedding) -> None:
        """Writes what was looked for and not found, now or in :meth:`finish`."""
        if (name := self._names.get(key)) is not None:
            self._write(name, embedding)
        elif (machine := self._unnamed.get(key)) is not None:
            self._waiting.append((key, machine, embedding))

    def finish(self) -> None:
        """Begins to read, in a thread of its own, the large files of what is to be kept, and to write that."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            name = "AITK reading of text encoders"
            threading.Thread(target=self._finish, args=(waiting,), name=name, daemon=True).start()

    def take_trouble(self) -> str:
        """Why something could not be kept since this was asked last; empty where nothing went wrong."""
        trouble, self._trouble = self._trouble, ""
        return trouble

    def _finish(self, waiting: Iterable[_Waiting]) -> None:
        # the next run's thread waits, and finds the digest that this one made
        with self._finishing:
            for key, machine, embedding in waiting:
                with suppress(FileError, OSError, TypeError):
                    self._write(_name(key, machine, self.digests.of), embedding)

    def _soon(self, stamp: FileStamp) -> str:
        """A digest that no run waits for."""
        if stamp.size > LARGE and not self.digests.knows(stamp):
            raise _NotReadYetError
        return self.digests.of(stamp)

    def _write(self, name: str, embedding: Embedding) -> None:
        folder, content = self._folder(), _written(embedding)
        if folder is None or len(content) > self._most:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, content)
        except OSError as error:
            self._trouble = reason(error)
        except FileError as error:
            cause = error.__cause__
            self._trouble = reason(cause) if isinstance(cause, OSError) else str(error)
        else:
            self._tidy(folder)

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


def _name(key: EmbeddingKey, machine: Mapping[str, Any], digest: Digest) -> str:
    return f"{identity(key, machine, digest)}.safetensors"


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
