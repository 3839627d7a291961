"""From the names in a workflow to the checkpoint that they mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import FileError, InputError
from ..observer import SILENT
from ..words import shown
from .checkpoint import Checkpoint, parts_in
from .choice import DEFAULT, INPUTS, PART_FILES, WEIGHT_FILES, WEIGHTS, Choice, Roots, folders
from .hub import cached_part, cached_repo, fetch_part, fetch_tokenizer, open_repo
from .single_file import SingleFileSource, open_single_file
from .untrusted_names import check_name, resolve_name

if TYPE_CHECKING:
    from ..observer import Observer
    from ..options import Role
    from .part_files import ModelFiles
    from .source import Source


_NONE: Mapping[str, Source] = MappingProxyType({})


def choose(
    model: ModelFiles,
    choice: Choice,
    roots: Roots,
    observer: Observer = SILENT,
    *,
    elsewhere: Mapping[str, Source] = _NONE,
) -> Checkpoint:
    """The checkpoint of a choice; reads no weights, and downloads what is neither there nor in the hub's cache.

    Args:
        model: what should be in it.
        choice: the names.
        roots: finds ComfyUI's folders.
        observer: told of downloads; where it raises, they end at once.
        elsewhere: part -> source of those that neither the weights nor the files are asked for.

    Raises:
        FileError, HubError, InputError: a file is missing, damaged or of another model; the message says which.
    """
    given = {**_given(model, choice, roots), **elsewhere}
    repo_id = choice.repo_id.strip()
    if choice.weights == DEFAULT:
        found = open_repo(repo_id or model.repository, model, given, observer)
        name = found[model.main].name
    elif repo_id:
        raise InputError(
            f"repo_id {shown(repo_id)} needs weights = default, not {shown(choice.weights)}. Change one of them."
        )
    else:
        name = check_name(choice.weights, "weights").as_posix()
        found = _weights(model, choice.weights, given, roots)
        if resolve_name(choice.weights, folders(WEIGHTS, roots), "weights").is_dir():
            # what a folder lacks comes from where AI Toolkit takes it
            lacking = [part for part in model.parts if part not in (*found, *given)]
            found |= {part: fetch_part(part, model, observer) for part in lacking}
    # also of a file that holds everything: ComfyUI's Save Checkpoint writes no tokenizer of Qwen's
    whole = {part: _with_tokenizer(source, model, observer) for part, source in (found | given).items()}
    return Checkpoint.assemble(name, whole, model)


def local_sources(model: ModelFiles, choice: Choice, roots: Roots) -> dict[str, Source]:
    """Part -> source of what lies in ComfyUI's folders; nothing is fetched."""
    found = _given(model, choice, roots)
    return found if choice.weights == DEFAULT else _weights(model, choice.weights, found, roots) | found


def sources_here(model: ModelFiles, choice: Choice, roots: Roots) -> dict[str, Source]:
    """Part -> source of what is on this machine, in ComfyUI's folders or the hub's cache; nothing is fetched.

    Raises:
        FileError: as :func:`choose`, of files in ComfyUI's folders.
    """
    found = local_sources(model, choice, roots)
    if choice.weights == DEFAULT:
        found |= cached_repo(choice.repo_id.strip() or model.repository, model, found)
    elif not resolve_name(choice.weights, folders(WEIGHTS, roots), "weights").is_dir():
        return found
    for part in [part for part in model.parts if part not in found]:
        found |= cached_part(part, model)
    return found


def _weights(model: ModelFiles, weights: str, given: Collection[str], roots: Roots) -> dict[str, Source]:
    """What ``weights`` names: a model folder (without ``given`` parts), or a file of parts."""
    name = check_name(weights, "weights").as_posix()
    path = resolve_name(weights, folders(WEIGHTS, roots), "weights")
    if path.is_dir():
        return parts_in(path, name, model, given)
    places = {kind: [file for root in roots(kind) if (file := root / name).is_file()] for kind in WEIGHT_FILES}
    places = {kind: files for kind, files in places.items() if files}
    # both kinds may be one folder, or the file is linked into both: then it is clear which
    if not all(file.samefile(path) for files in places.values() for file in files[:1]):
        raise FileError(f"{name!r} is in {' and in '.join(places)}: rename one of the two, so that it is clear which.")
    found = open_single_file(path, name, model)
    if model.main not in found:
        inputs = dict.fromkeys(INPUTS[source.role] for source in found.values())
        raise FileError(
            f"{name!r} holds the {' and the '.join(found)} of {model.title}, and weights must hold the {model.main}. "
            f"Choose it as {' or '.join(inputs)}."
        )
    return dict(found)


def _given(model: ModelFiles, choice: Choice, roots: Roots) -> dict[str, Source]:
    """Part -> source, for those that have a file of their own."""
    found: dict[str, Source] = {}
    for role, file in choice.files.items():
        if file != DEFAULT:
            found |= of_role(model, role, file, roots)
    return found


def of_role(model: ModelFiles, role: Role, file: str, roots: Roots) -> dict[str, SingleFileSource]:
    """The parts of a role in a single file of ComfyUI's folders, which may hold others too."""
    what, name = INPUTS[role], check_name(file, INPUTS[role]).as_posix()
    found = open_single_file(resolve_name(file, folders(PART_FILES[role], roots), what), name, model)
    own = {part: source for part, source in found.items() if source.role == role}
    if not own:
        raise FileError(f"{name!r} holds the {' and the '.join(found)} of {model.title}, no {what}. Choose another.")
    return own


def _with_tokenizer(source: Source, model: ModelFiles, observer: Observer) -> Source:
    """The source itself, or with the tokenizer of its repository where its file holds none."""
    needs = model.parts[source.component].tokenizer is not None
    if needs and isinstance(source, SingleFileSource) and source.tokenizer() is None:
        return replace(source, tokenizer_folder=fetch_tokenizer(source.component, model, observer))
    return source
