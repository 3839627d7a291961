"""A program of its own that downloads a repository's files into Hugging Face's cache; ``download.py`` starts it.

It is a process because only a process can be ended at any moment: what waits for a server, or is in Xet's own threads,
hears no exception. It is started by its path and imports nothing of this pack.

One line of JSON comes in: ``repo_id``, ``patterns``, ``path`` (where to import from) and ``most`` (bytes of a piece).
Lines of JSON go out::

    {"plan": bytes to come, "there": bytes of them that are there already}   then it waits for another line
    {"done": bytes that have come}
    {"folder": path of the snapshot}    or    {"error": kind, "why": reason}

It ends when its input is closed, so that it never outlives who started it. It finds the user's token where
huggingface_hub does, and says nothing of it.

huggingface_hub 2.x gives up what it has of a file when it is interrupted, and Xet's downloads always did. So files of
some size are fetched here: by ranges, several at once, appended in their order. What is there is always the beginning
of the file, whose length says where to go on. huggingface_hub then finds the file in its cache and links it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONNECTIONS = 8
_LEAST = 1 << 20  # bytes: of a piece, and of a file that is fetched in pieces
_SOON, _LATE = 1.0, 4.0  # seconds of a piece, after which pieces become larger or smaller
_TRIES = 4
_SAY_EVERY = 0.5  # seconds
_CHUNK = 1 << 18  # bytes between two looks at what has come


class _NoRangesError(Exception):
    """The server sends the whole file whatever it is asked for."""


@dataclass(frozen=True)
class _File:
    """A file that is not in the cache.

    Attributes:
        name: in the repository.
        size: bytes.
        part: where its beginning is, which may not be there.
    """

    name: str
    size: int
    part: Path

    @property
    def there(self) -> int:
        try:
            found = self.part.stat().st_size
        except OSError:
            return 0
        return found if found <= self.size else 0


class _Count:
    """Bytes that have come; said at most twice a second."""

    def __init__(self, say: Callable[..., None], done: int) -> None:
        self._say = say
        self._done = done
        self._lock = threading.Lock()
        self._next = 0.0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now >= self._next:
                self._next = now + _SAY_EVERY
                self._say(done=self._done)


class _Piece(io.BytesIO):
    def __init__(self, length: int, count: _Count) -> None:
        super().__init__()
        self._length = length
        self._count = count

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._length:
            raise _NoRangesError
        self._count.add(len(data))
        return super().write(data)


class _Address:
    """Where a file's bytes are: signed addresses end after some time, and then another one is asked for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._try = 0
        self.etag = self._ask()

    def _ask(self) -> str:
        from huggingface_hub import get_hf_file_metadata

        found = get_hf_file_metadata(self._url)
        self._location = found.location
        return found.etag or ""

    def now(self) -> tuple[str, int]:
        """An address, and its number."""
        with self._lock:
            # the hub's own leads there too, by another request
            return (self._url if self._try % 2 else self._location), self._try

    def refused(self, number: int) -> None:
        """Another one is needed, unless somebody asked for it since."""
        with self._lock:
            if number == self._try:
                self._try += 1
                if self._try % 2 == 0:
                    self._ask()


def _headers(url: str) -> dict[str, str]:
    """The hub's headers; those of the login only for the hub itself."""
    from urllib.parse import urlparse

    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    own = urlparse(url).netloc == urlparse(constants.ENDPOINT).netloc
    return build_hf_headers(token=None if own else False)


class _Fetcher:
    """Fetches files in pieces.

    Args:
        most: bytes of a piece.
        count: of all that comes.
    """

    def __init__(self, most: int, count: _Count) -> None:
        self._most = most
        self._length = min(_LEAST, most)
        self._count = count

    def fetch(self, file: _File, address: _Address) -> None:
        """Appends to the file's beginning until it is whole."""
        file.part.parent.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(_CONNECTIONS)
        waiting: deque[Future[bytes]] = deque()
        try:
            with file.part.open("ab", buffering=0) as out:
                out.truncate(file.there)
                asked = file.there
                while asked < file.size or waiting:
                    while asked < file.size and len(waiting) < _CONNECTIONS:
                        length = min(self._length, file.size - asked)
                        waiting.append(pool.submit(self._piece, address, asked, length))
                        asked += length
                    out.write(waiting.popleft().result())
        except _NoRangesError:
            file.part.unlink()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _piece(self, address: _Address, begin: int, length: int) -> bytes:
        from huggingface_hub.file_download import http_get

        piece, start = _Piece(length, self._count), time.monotonic()
        for left in reversed(range(_TRIES)):
            url, number = address.now()
            headers = _headers(url) | {"Range": f"bytes={begin}-{begin + length - 1}"}
            try:
                http_get(url, piece, resume_size=piece.tell(), headers=headers, expected_size=length)  # pyright: ignore[reportArgumentType]
                break
            except _NoRangesError:
                raise
            except Exception:
                if not left:
                    raise
                address.refused(number)
        took = time.monotonic() - start
        if took < _SOON:
            self._length = min(self._most, max(self._length, 2 * length))
        elif took > _LATE:
            self._length = max(min(_LEAST, self._most), length // 2)
        return piece.getvalue()


class _Repository:
    """One repository at its newest commit, and its folder in the cache."""

    def __init__(self, repo_id: str, patterns: list[str]) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import filter_repo_objects

        info = HfApi().model_info(repo_id, files_metadata=True)
        self.id, self.commit = repo_id, info.sha or ""
        self._cache = Path(constants.HF_HUB_CACHE)
        self._folder = self._cache / repo_folder_name(repo_id=repo_id, repo_type="model")
        self.missing: list[_File] = []
        siblings = {found.rfilename: found for found in info.siblings or ()}
        for name in filter_repo_objects(siblings, allow_patterns=patterns):
            found = siblings[name]
            etag = found.lfs.sha256 if found.lfs is not None else found.blob_id
            blobs = self._folder / "blobs"
            if not (self._pointer(name).exists() or (etag and (blobs / etag).exists())):
                self.missing.append(_File(name, found.size or 0, blobs / f"{etag}.aitk.incomplete"))

    def _pointer(self, name: str) -> Path:
        return self._folder.joinpath("snapshots", self.commit, *name.split("/"))

    def fetch(self, file: _File, fetcher: _Fetcher) -> None:
        """Brings a file into the cache."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import are_symlinks_supported
        from huggingface_hub.utils import WeakFileLock

        address = _Address(hf_hub_url(self.id, file.name, revision=self.commit))
        blob, pointer = self._folder / "blobs" / address.etag, self._pointer(file.name)
        lock = self._cache / ".locks" / self._folder.name / f"{address.etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            # another process may have brought it meanwhile
            if blob.exists() or pointer.exists():
                return
            fetcher.fetch(file, address)
            # without links, huggingface_hub would copy what it finds among its blobs
            target = blob if are_symlinks_supported(self._cache) else pointer
            target.parent.mkdir(parents=True, exist_ok=True)
            file.part.replace(target)

    def finish(self, patterns: list[str]) -> str:
        """The snapshot's folder, with the small files too; the cache then knows it as the main branch's."""
        from huggingface_hub import snapshot_download

        folder = snapshot_download(self.id, revision=self.commit, allow_patterns=patterns)
        ref = self._folder / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(self.commit)
        return folder


def _download(job: dict[str, Any], say: Callable[..., None], go: threading.Event) -> str:
    repo_id, patterns = job["repo_id"], job["patterns"]
    try:
        repository = _Repository(repo_id, patterns)
    except Exception:
        # it asks again, and says why not in a way that does not differ between versions
        from huggingface_hub import snapshot_download

        return snapshot_download(repo_id, allow_patterns=patterns)
    there = sum(file.there for file in repository.missing)
    say(plan=sum(file.size for file in repository.missing), there=there)
    go.wait()
    fetcher = _Fetcher(job["most"], _Count(say, there))
    try:
        for file in repository.missing:
            if file.size >= min(_LEAST, job["most"]):
                repository.fetch(file, fetcher)
    except _NoRangesError:
        # some mirrors: then huggingface_hub fetches files whole
        pass
    return repository.finish(patterns)


def _failure(error: Exception) -> dict[str, str]:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    kinds = {"gated": GatedRepoError, "missing": RepositoryNotFoundError, "unreachable": LocalEntryNotFoundError}
    kind = next((kind for kind, found in kinds.items() if isinstance(error, found)), "other")
    # the text of other errors may hold addresses with signatures in them
    why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
    return {"error": kind, "why": why}


def _listen(go: threading.Event) -> None:
    while sys.stdin.buffer.readline():
        go.set()
    # who started it is gone
    os._exit(1)


def main() -> None:
    """Runs the job that comes in."""
    out, speaking = sys.stdout.buffer, threading.Lock()
    # what libraries print is not for who listens
    sys.stdout = sys.stderr

    def say(**line: Any) -> None:
        with speaking:
            out.write(json.dumps(line).encode() + b"\n")
            out.flush()

    job = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = job["path"]
    go = threading.Event()
    threading.Thread(target=_listen, args=(go,), daemon=True).start()
    try:
        from huggingface_hub import constants

        constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
        say(folder=_download(job, say, go))
    except Exception as error:
        say(**_failure(error))
    # threads may still wait for a server
    os._exit(0)


if __name__ == "__main__":
    main()
