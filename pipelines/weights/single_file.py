"""A part in a single file, alone or beside others: safetensors, GGUF, or a pickle of plain tensors.

One of several numbered safetensors files stands for all of them where the others lie beside it, and a GGUF file of a
model that sees pictures for its vision tower, which is a file of its own: see :mod:`.beside`.

Such a file holds no configuration. Sizes come from its tensors, the rest from the released model; where that does not
hold (a model of one's own), a JSON file of that name beside it, ``NAME.aitk.json``, says what is different: part ->
object in the keys of the part's class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import FileError
from ..files.header import FileStamp, TensorInfo
from ..files.quantised import read_header, read_tensors
from ..words import shown
from .beside import beside
from .folder import read_json
from .layout import Layout, Placed, SingleFiles, placed
from .shards import shard_names
from .untrusted_config import checked_config

if TYPE_CHECKING:
    import torch

    from ..files.packed import PackedTensor
    from ..options import Role
    from .part_files import ModelFiles

_NUMBER = re.compile(r"-(\d{1,6})-of-(\d{1,6})\b")  # in a file's name: which part of how many
OVERRIDES = ".aitk.json"  # a name of our own: other tools write NAME.json


@dataclass(frozen=True)
class SingleFileSource:
    """See :class:`.source.Source`.

    Attributes:
        name: the file's, as the user chose it.
        component: which part this is.
        role: what it does.
        weight_files: the file, or all of those that are numbered; and the one that belongs to it.
        overrides: the JSON beside it, where there is one.
        facts: what files of this part look like.
        layout: the one that this file has.
        prefix: what stands before the part's names in it.
        tokenizer_folder: of a text encoder whose file holds no tokenizer.
    """

    name: str
    component: str
    role: Role
    weight_files: tuple[FileStamp, ...]
    overrides: FileStamp | None
    facts: SingleFiles
    layout: Layout
    prefix: str
    tokenizer_folder: Path | None = None

    @property
    def config_name(self) -> str:
        return f"sizes ({self.component})"

    @property
    def files(self) -> tuple[FileStamp, ...]:
        return (*self.weight_files, *([self.overrides] if self.overrides is not None else []))

    @property
    def paths(self) -> list[Path]:
        return [stamp.path for stamp in self.weight_files]

    def config(self) -> dict[str, Any]:
        try:
            config = self.facts.config(self.tensor_infos())
        except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
            raise FileError(f"The {self.component} in {self.name!r} cannot be understood: {error}.") from error
        if self.overrides is not None:
            path = self.overrides.path
            own = read_json(path, path.name).get(self.component, {})
            if not isinstance(own, dict):
                raise FileError(f"{path.name!r}: {self.component!r} is no JSON object.")
            config |= own
        return checked_config(config, f"{self.config_name} of {self.name!r}")

    def tensor_infos(self) -> dict[str, TensorInfo]:
        self._check_unchanged()
        return dict(_placed(self).infos)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        self._check_unchanged()
        found = _placed(self)
        needed = found.needed(names)
        yield from found.fill(read_tensors(self.paths, list(needed)), needed)

    def tokenizer(self) -> Path | bytes | None:
        self._check_unchanged()
        if self.tokenizer_folder is not None:
            return self.tokenizer_folder
        for key, info in read_header(self.paths).tensors.items() if self.facts.tokenizer else ():
            if key.endswith(self.facts.tokenizer):
                if info.dtype != "U8":
                    raise FileError(f"The tokenizer in {self.name!r} is damaged: it is {info.dtype}, and no bytes.")
                ((_, value),) = read_tensors(self.paths, [key])
                return bytes(cast("torch.Tensor", value).numpy())
        return None

    @property
    def tokenizer_name(self) -> str:
        return f"the tensor {self.facts.tokenizer}" if self.facts.tokenizer else "its repository's"

    def _check_unchanged(self) -> None:
        for stamp in self.files:
            if FileStamp.of(stamp.path) != stamp:
                raise FileError(f"{stamp.path.name!r} was replaced after its node ran. Run again.")


@lru_cache(maxsize=16)
def _placed(source: SingleFileSource) -> Placed:
    tokenizer = source.facts.tokenizer
    stored = {
        key: info
        for key, info in read_header(source.paths).tensors.items()
        if not (tokenizer and key.endswith(tokenizer))
    }
    try:
        # without a prefix the file holds this part alone, and what has no place in the model is told to the caller
        return placed(stored, source.layout, source.prefix)
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise FileError(f"The {source.component} in {source.name!r} cannot be understood: {error}.") from error


def open_single_file(path: Path, name: str, model: ModelFiles) -> dict[str, SingleFileSource]:
    """Part -> source, for every part of the model that a file holds; reads no weights.

    Raises:
        FileError: the file is missing, damaged, of an unknown kind, quantised in a way that is not read, or holds no
            part of this model.
    """
    alone = _whole(path, name)
    own_facts = path.with_suffix(OVERRIDES)
    overrides = FileStamp.of(own_facts) if own_facts.is_file() else None
    found: dict[str, SingleFileSource] = {}
    strangers: list[str] = []
    for part, facts in model.parts.items():
        paths = _with_second(alone, name, facts.files)
        header = read_header(paths)
        prefixed = ((layout, layout.prefix_in(header.tensors)) for layout in facts.files.layouts)
        own = next(((layout, prefix) for layout, prefix in prefixed if prefix is not None), None)
        stranger = facts.files.stranger(header)
        if stranger:
            strangers.append(stranger)
        elif own is not None:
            files = tuple(FileStamp.of(own_path) for own_path in paths)
            found[part] = SingleFileSource(name, part, facts.role, files, overrides, facts.files, *own)
    if not found:
        tensors = read_header(alone).tensors
        first = next(iter(tensors), "nothing")
        why = strangers[0] if strangers else f"its {len(tensors)} tensors begin with {shown(first)}"
        raise FileError(
            f"{name!r} holds no part of {model.title}: {why}. "
            "Choose another file, or set model to what the file was made for."
        )
    return found


def _with_second(paths: list[Path], name: str, files: SingleFiles) -> list[Path]:
    """The file, with the one that it needs and that lies beside it."""
    if files.beside is None or not files.beside.lacks(read_header(paths)):
        return paths
    second = beside(paths[0], name, files.beside)
    return paths if second is None else [*paths, second]


def _whole(path: Path, name: str) -> list[Path]:
    """The file, or all of the numbered ones that it is one of; raises FileError where some are not beside it."""
    number = _NUMBER.search(path.name)
    if number is None or int(number[2]) <= 1:
        return [path]
    shards = [path.with_name(shard) for shard in shard_names(path.name)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent or not shards:
        why = f"{shown(absent[0])} is not beside it" if absent else "such names are not followed"
        raise FileError(
            f"{name!r} is part {int(number[1])} of {int(number[2])} of a model, and {why}. Put all of its parts into "
            "one folder, choose a file that holds it whole, or put the whole folder into ComfyUI's 'diffusers' folder."
        )
    return shards


def open_part(path: Path, name: str, part: str, model: ModelFiles) -> SingleFileSource:
    """One part in a file that may hold others too; errors as :func:`open_single_file`, and where it is not in there."""
    found = open_single_file(path, name, model)
    if part not in found:
        raise FileError(f"{name!r} holds the {' and the '.join(found)} of {model.title}, no {part}. Choose another.")
    return found[part]
