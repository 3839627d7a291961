"""Hugging Face repositories: the local cache first, a download when something is missing.

Tokens come from where huggingface_hub itself looks (``HF_TOKEN``, ``hf auth login``) and are never seen here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError, HubError, InputError
from ..observer import SILENT
from ..words import shown
from .checkpoint import MODEL_INDEX, parts_in
from .download import DownloadError, download
from .folder import FolderSource, has_tokenizer
from .part_files import Repository
from .single_file import open_part

if TYPE_CHECKING:
    from ..observer import Observer
    from .part_files import ModelFiles, PartFiles
    from .source import Source

_Opened = Callable[[Path], "dict[str, Source]"]
# the hub's own rule: neither half ends in a dot or a dash, none holds two of them, and none is called like a git folder
_HALF = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-])){0,94}(?<![.-])"
_REPO_ID = re.compile(f"{_HALF}/{_HALF}(?<![.]git)")
_LONGEST_ID = 96
_FILE = re.compile(r"\w[\w.-]*\.(?:safetensors|sft)")
_COMMIT = 40  # hexadecimal digits
# safetensors and text only: pickles are not even downloaded
_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_OFFLINE = (
    "Connect to the network once, or download it elsewhere and put the folder into ComfyUI's 'diffusers' folder, "
    "where `weights` will list it."
)


def open_repo(
    repo_id: str, model: ModelFiles, given: Collection[str] = (), observer: Observer = SILENT
) -> dict[str, Source]:
    """The parts of a model in the cached snapshot of its repository, downloaded first where it is not complete.

    AI Toolkit's own files are preferred to diffusers' subfolders where a repository has both. Parts that AI Toolkit
    takes from repositories of their own come from there.

    Args:
        repo_id: ``owner/name``.
        model: what should be in it; what it does not need is not downloaded.
        given: parts that come from elsewhere.
        observer: told of a download; where it raises, the download ends at once, and goes on in a later call.

    Returns:
        Part -> source, for all that are not given.

    Raises:
        InputError: ``repo_id`` is not of that form.
        HubError: it is not cached and cannot be downloaded; the message says why and what to do.
        FileError: the repository lacks a part of the model.
    """
    _check_id(repo_id)
    own = _own(model, given)
    choices = [[MODEL_INDEX, *(pattern for part, facts in own.items() for pattern in _folders(part, facts))]]
    if all(facts.file for facts in own.values()):
        choices.insert(0, [facts.file for facts in own.values()])
    found = _snapshot(repo_id, choices, _opening(repo_id, model, given), observer)
    others = [part for part in model.parts if part not in given and part not in own]
    return found | {part: fetch_part(part, model, observer) for part in others}


def cached_repo(repo_id: str, model: ModelFiles, given: Collection[str] = ()) -> dict[str, Source]:
    """What :func:`open_repo` takes from the repository itself, where all of that is in the cache; else nothing.

    Raises:
        InputError: ``repo_id`` is not of that form.
    """
    _check_id(repo_id)
    return _cached(repo_id, _opening(repo_id, model, given)) or {}


def cached_part(part: str, model: ModelFiles) -> dict[str, Source]:
    """What :func:`fetch_part` finds in the cache, by the part's name; nothing where that lacks it."""
    repository = model.parts[part].repository
    return (repository and _cached(repository.id, _opening_part(part, model))) or {}


def fetch_part(part: str, model: ModelFiles, observer: Observer = SILENT) -> Source:
    """A part from the repository where AI Toolkit takes it from; errors as :func:`open_repo`."""
    repository = model.parts[part].repository
    assert repository is not None
    return _snapshot(repository.id, [repository.patterns], _opening_part(part, model), observer)[part]


def fetch_from(repo_id: str, part: str, model: ModelFiles, file: str, *, alone: bool, observer: Observer) -> Source:
    """A part from a repository that AI Toolkit does not take it from by itself; errors as :func:`open_repo`.

    Args:
        repo_id: ``owner/name``.
        part: which.
        model: whose part it is.
        file: the part's, in the root of the repository; empty where it has diffusers' files.
        alone: whether those lie in the root too.
        observer: of a download.
    """
    facts = model.parts[part]
    patterns = (file,) if file else _FILES if alone else tuple(_folders(part, facts))
    there = replace(facts, repository=Repository(repo_id, patterns, whole=not alone), file=file)
    return fetch_part(part, replace(model, parts={**model.parts, part: there}), observer)


def fetch_file(named: str, observer: Observer = SILENT) -> Path | None:
    """The safetensors file that ``owner/name/file`` names, from the cache or downloaded; None of any other text.

    Raises:
        HubError: as :func:`open_repo`.
        FileError: the repository has no such file.
    """
    repository, _, file = named.rpartition("/")
    if not is_repository(repository) or not _FILE.fullmatch(file):
        return None
    for folder in _cached_folders(repository):
        if (folder / file).is_file():
            return folder / file
    path = _download(repository, (file,), observer) / file
    if not path.is_file():
        raise FileError(f"{repository!r} has no file {shown(file)}.")
    return path


def is_repository(text: str) -> bool:
    """Whether a text has the form of a repository's id."""
    return len(text) <= _LONGEST_ID and _REPO_ID.fullmatch(text) is not None


def _check_id(repo_id: str) -> None:
    if not is_repository(repo_id):
        raise InputError(f"repo_id {shown(repo_id)} is no Hugging Face repository id. Write it as owner/name.")


def fetch_tokenizer(part: str, model: ModelFiles, observer: Observer = SILENT) -> Path:
    """The folder of a text encoder's tokenizer, for single files that hold none; errors as :func:`open_repo`."""
    repository = model.parts[part].tokenizer
    assert repository is not None
    for folder in _cached_folders(repository.id):
        if has_tokenizer(folder / repository.folder):
            return folder / repository.folder
    return _download(repository.id, repository.patterns, observer) / repository.folder


def _own(model: ModelFiles, given: Collection[str]) -> dict[str, PartFiles]:
    """The parts that AI Toolkit takes from the model's repository itself."""
    return {part: facts for part, facts in model.parts.items() if part not in given and facts.repository is None}


def _opening(repo_id: str, model: ModelFiles, given: Collection[str]) -> _Opened:
    """What opens a snapshot of a model's repository."""

    def opened(folder: Path) -> dict[str, Source]:
        found = parts_in(folder, _name(repo_id, folder), model, given)
        # what is there although AI Toolkit does not take it from here may be other weights
        return {part: found[part] for part in _own(model, given)}

    return opened


def _opening_part(part: str, model: ModelFiles) -> _Opened:
    """What opens a snapshot of the repository that a part has for itself."""
    facts = model.parts[part]
    repository = facts.repository
    assert repository is not None

    def opened(folder: Path) -> dict[str, Source]:
        name = _name(repository.id, folder)
        if facts.file:
            return {part: open_part(folder / facts.file, f"{name}/{facts.file}", part, model)}
        return {part: FolderSource.open(folder, name, part, facts, alone=not repository.whole)}

    return opened


def _folders(part: str, facts: PartFiles) -> list[str]:
    return [f"{folder}/{pattern}" for folder in (facts.folder or part, *facts.companions) for pattern in _FILES]


def _snapshot(repo_id: str, choices: Sequence[Sequence[str]], opened: _Opened, observer: Observer) -> dict[str, Source]:
    """The parts that ``opened`` finds in the repository's folder: as it lies in the cache, else downloaded.

    Args:
        repo_id: of the repository.
        choices: patterns of the files that are needed, the preferred ones first; the next are tried where a repository
            has none of them.
        opened: raises FileError where something is missing.
        observer: of the download.
    """
    cached = _cached(repo_id, opened)
    if cached is not None:
        return cached
    for patterns in choices[:-1]:
        folder = _download(repo_id, patterns, observer)
        if all((folder / pattern).is_file() for pattern in patterns):
            return opened(folder)
    return opened(_download(repo_id, choices[-1], observer))


def _cached_folders(repo_id: str) -> list[Path]:
    """The snapshot of the main branch; all that the cache has, newest first, where it does not know which that is."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    try:
        with (home / "refs" / "main").open("rb") as file:
            commit = file.read(_COMMIT + 1).decode("ascii", errors="replace")
        main = home / "snapshots" / commit
        if len(commit) == _COMMIT and commit.isalnum() and main.is_dir():
            return [main]
    except OSError:
        # copied from another machine, or fetched by its commit
        pass
    try:
        folders = [folder for folder in (home / "snapshots").iterdir() if folder.is_dir()]
        return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
    except OSError:
        return []


def _cached(repo_id: str, opened: _Opened) -> dict[str, Source] | None:
    for folder in _cached_folders(repo_id):
        try:
            found = opened(folder)
            if all(_is_whole(source) for source in found.values()):
                return found
        except FileError:
            # an interrupted download leaves a part of the files: fetch the rest
            continue
    return None


def _is_whole(source: Source) -> bool:
    """Whether all that a part needs is there; raises FileError where its files are damaged or missing."""
    source.config()
    source.tensor_infos()
    return source.role != "encoder" or source.tokenizer() is not None


def _name(repo_id: str, folder: Path) -> str:
    # a snapshot's folder is called like its commit
    return f"{repo_id}@{folder.name[:12]}"


def _download(repo_id: str, patterns: Sequence[str], observer: Observer) -> Path:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo_id!r} is not (wholly) in the cache, and HF_HUB_OFFLINE forbids downloads. {_OFFLINE}")
    try:
        return download(repo_id, patterns, observer)
    except DownloadError as error:
        raise HubError(_message(repo_id, error)) from error


def _message(repo_id: str, error: DownloadError) -> str:
    if error.kind == "gated":
        return (
            f"{repo_id!r} is gated: its licence must be accepted on its Hugging Face page, and this machine must be "
            "logged in ('hf auth login', or the environment variable HF_TOKEN). Tokens never go into a workflow."
        )
    if error.kind == "missing":
        return (
            f"There is no repository {repo_id!r} on the hub, or it is private and this machine is not logged in "
            "('hf auth login', or the environment variable HF_TOKEN). Check the spelling of repo_id."
        )
    if error.kind == "unreachable":
        return f"{repo_id!r} is not in the cache, and the hub cannot be reached. {_OFFLINE}"
    return (
        f"{repo_id!r} could not be downloaded ({error.why}). Run again: a download goes on where it stopped. {_OFFLINE}"
    )
