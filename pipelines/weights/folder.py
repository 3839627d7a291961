"""A part in a folder of its own: of a model folder in diffusers' layout, or the root of a repository."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.header import FileStamp, Header, TensorInfo
from ..files.safetensors import read_header, read_tensors
from .layout import Placed, placed

if TYPE_CHECKING:
    import torch

    from ..files.packed import PackedTensor
    from ..options import Role
    from .part_files import PartFiles

# diffusers' and transformers' names of a component's weights, single or sharded
_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")  # what a change of makes another checkpoint
_TOKENIZER, _SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
# a tokenizer without the fast one's file, which transformers converts
_SLOW_TOKENIZER = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class FolderSource:
    """See :class:`.source.Source`.

    Attributes:
        name: the whole folder's, or the repository's.
        component: which part this is.
        folder: the whole folder.
        subfolder: the part's; empty is the folder itself.
        tokenizer_folder: the tokenizer's, likewise.
        files: every configuration and weight file, stamped; tells this folder from a changed one.
        facts: what files of this part look like.
    """

    name: str
    component: str
    folder: Path
    subfolder: str
    tokenizer_folder: str
    files: tuple[FileStamp, ...]
    facts: PartFiles

    @classmethod
    def open(cls, folder: Path, name: str, component: str, facts: PartFiles, *, alone: bool = False) -> FolderSource:
        """Stamps the files of a part and of its companions, e.g. a tokenizer.

        Args:
            folder: the whole folder.
            name: how it is shown.
            component: which part.
            facts: the model's of this part.
            alone: whether the part and its companions lie in the folder itself.
        """
        subfolder = "" if alone else facts.folder or component
        companions = ("",) if alone else facts.companions
        paths: list[Path] = []
        for inside in dict.fromkeys((subfolder, *companions)):
            paths += sorted(p for p in (folder / inside).iterdir() if p.suffix in _SUFFIXES)
        stamps = tuple(FileStamp.of(path) for path in paths)
        return cls(name, component, folder, subfolder, next(iter(companions), ""), stamps, facts)

    @property
    def role(self) -> Role:
        return self.facts.role

    @property
    def config_name(self) -> str:
        return f"{self._where}config.json"

    @property
    def weight_files(self) -> tuple[FileStamp, ...]:
        return tuple(stamp for stamp in self.files if stamp.path.suffix == ".safetensors")

    def config(self) -> dict[str, Any]:
        return dict(_config(self))

    def tensor_infos(self) -> dict[str, TensorInfo]:
        self.headers()
        return dict(_placed(self).infos)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        headers = self.headers()
        found = _placed(self)
        needed = found.needed(names)
        stored = (
            pair
            for header in headers
            for pair in read_tensors(header.path, [key for key in header.tensors if key in needed])
        )
        yield from found.fill(stored, needed)

    def tokenizer(self) -> Path | bytes | None:
        folder = self.folder / self.tokenizer_folder
        if has_tokenizer(folder):
            return folder
        alone = folder / _SENTENCEPIECE
        return alone.read_bytes() if alone.is_file() else None

    @property
    def tokenizer_name(self) -> str:
        return f"{self.tokenizer_folder}/{_TOKENIZER}" if self.tokenizer_folder else _TOKENIZER

    def headers(self) -> list[Header]:
        """The checked headers of the weight files.

        Raises:
            FileError: see :meth:`_paths`; a file is damaged, or is not the one that was there when the folder was
                opened.
        """
        paths = self._paths()
        for path in paths:
            if FileStamp.of(path) not in self.files:
                raise FileError(
                    f"{self._where}{path.name} of {self.name!r} was replaced after its node ran. Run again."
                )
        return [read_header(path) for path in paths]

    @property
    def _where(self) -> str:
        return f"{self.subfolder}/" if self.subfolder else ""

    def _paths(self) -> list[Path]:
        """The safetensors files, in the index's order.

        Raises:
            FileError: there are none, or some of the shards that the index names are missing.
        """
        folder = self.folder / self.subfolder
        for stem in _WEIGHT_NAMES:
            index = folder / f"{stem}.safetensors.index.json"
            if index.is_file():
                return self._shards(index)
            if (folder / f"{stem}.safetensors").is_file():
                return [folder / f"{stem}.safetensors"]
        others = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".ckpt")]
        why = f" It has {others[0]}, which is not read from a model folder." if others else ""
        raise FileError(f"{self.name!r} has no safetensors weights in {self.component}.{why} Get a safetensors copy.")

    def _shards(self, index: Path) -> list[Path]:
        folder = index.parent
        weight_map = read_json(index, self.name).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise FileError(f"{self.name!r} is damaged: {self._where}{index.name} has no weight_map. Download it.")
        shards = [folder / shard for shard in dict.fromkeys(weight_map.values())]
        absent = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
        if absent or not shards:
            raise FileError(
                f"{self.name!r} is incomplete: {self.component} lacks {', '.join(absent) or 'its shards'}. "
                "Download it again."
            )
        return shards


def has_tokenizer(folder: Path) -> bool:
    """Whether transformers finds a tokenizer in a folder."""
    return (folder / _TOKENIZER).is_file() or all((folder / name).is_file() for name in _SLOW_TOKENIZER)


@lru_cache(maxsize=64)
def _config(source: FolderSource) -> dict[str, Any]:
    config = read_json(source.folder / source.subfolder / "config.json", source.name)
    try:
        return source.facts.config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{source.config_name} of {source.name!r} cannot be understood ({type(error).__name__}: {error}). "
            "Download it again."
        ) from error


@lru_cache(maxsize=16)
def _placed(source: FolderSource) -> Placed:
    stored = {key: info for header in source.headers() for key, info in header.tensors.items()}
    for layout in source.facts.files.layouts:
        prefix = layout.prefix_in(stored)
        if prefix is not None:
            break
    else:
        layout, prefix = None, ""
    try:
        return placed(stored, layout, prefix)
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise FileError(f"The {source.component} in {source.name!r} cannot be understood: {error}.") from error


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; raises FileError, which calls what it belongs to ``name``."""
    where = f"{path.parent.name}/{path.name}"
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{name!r} is incomplete: {where} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FileError(f"{name!r} is damaged: {where} is not valid JSON. Download it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{name!r} is damaged: {where} holds no JSON object.")
    return value
