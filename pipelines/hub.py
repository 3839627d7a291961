"""Hugging Face repositories: the local cache first, a download when something is missing.

Tokens come from where huggingface_hub itself looks (``HF_TOKEN``, ``hf auth login``) and are never seen here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import MODEL_INDEX, Checkpoint
from .errors import FileError, HubError, InputError

if TYPE_CHECKING:
    from .models.facts import ModelFacts

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# safetensors and text only: pickles are not even downloaded
_FILES = ("*.safetensors", "*.json", "*.model", "*.txt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_OFFLINE = (
    "Connect to the network once, or download it elsewhere and put the folder into ComfyUI's 'diffusers' folder, "
    "where `weights` will list it."
)


def open_repo(repo_id: str, model: ModelFacts) -> Checkpoint:
    """The cached snapshot of a repository, downloaded first where it is not complete.

    Args:
        repo_id: ``owner/name``.
        model: what should be in it; folders that it does not need are not downloaded.

    Raises:
        InputError: ``repo_id`` is not of that form.
        HubError: it is not cached and cannot be downloaded; the message says why and what to do.
        FileError: the repository lacks a part of the model.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id:
        raise InputError(f"repo_id {repo_id!r} is no Hugging Face repository id. Write it as owner/name.")
    patterns = [MODEL_INDEX, *(f"{component}/{pattern}" for component in model.components for pattern in _FILES)]
    cached = _cached(repo_id, patterns, model)
    return cached or _named(repo_id, _download(repo_id, patterns), model)


def _named(repo_id: str, folder: Path, model: ModelFacts) -> Checkpoint:
    # a snapshot's folder is called like its commit
    return Checkpoint.open(folder, f"{repo_id}@{folder.name[:12]}", model)


def _cached(repo_id: str, patterns: list[str], model: ModelFacts) -> Checkpoint | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=patterns, local_files_only=True))
        checkpoint = _named(repo_id, folder, model)
        for companion in (name for facts in model.parts.values() for name in facts.companions):
            if not any((folder / companion / name).is_file() for name in _TOKENIZERS):
                return None
        for source in checkpoint.sources:
            source.config()
            source.tensor_infos()
        return checkpoint
    except (LocalEntryNotFoundError, FileError):
        # an interrupted download leaves a part of the files: fetch the rest
        return None


def _download(repo_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo_id!r} is not (wholly) in the cache, and HF_HUB_OFFLINE forbids downloads. {_OFFLINE}")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except GatedRepoError as error:
        raise HubError(
            f"{repo_id!r} is gated: its licence must be accepted on its Hugging Face page, and this machine must be "
            "logged in ('hf auth login', or the environment variable HF_TOKEN). Tokens never go into a workflow."
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"There is no repository {repo_id!r} on the hub, or it is private and this machine is not logged in "
            "('hf auth login', or the environment variable HF_TOKEN). Check the spelling of repo_id."
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{repo_id!r} is not in the cache, and the hub cannot be reached. {_OFFLINE}") from error
    except Exception as error:
        # connection classes differ between huggingface_hub 0.x (requests), 1.x and 2.x (httpx)
        raise HubError(
            f"{repo_id!r} could not be downloaded ({_reason(error)}). Run again: a download goes on where it "
            f"stopped. {_OFFLINE}"
        ) from error


def _reason(error: Exception) -> str:
    # the text of other errors may hold addresses with signatures in them
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
