"""A part in a folder of its own: of a model folder in diffusers' layout, or the root of a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.header import FileStamp, TensorInfo
from ..files.quantised import read_header, read_tensors
from ..words import shown
from .layout import Placed, placed
from .quantisation_config import unsaid_format
from .shards import shard_names
from .untrusted_config import checked_config

if TYPE_CHECKING:
    import torch

    from ..files.packed import PackedTensor
    from ..options import Role
    from .part_files import PartFiles

# diffusers' and transformers' names of a component's weights, single or sharded
_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
# what a folder's weights may be called besides, e.g. diffusion_pytorch_model.fp16.safetensors; the first that is there
# is taken, so that of several the one with the most bits is
_VARIANTS = ("fp32", "bf16", "fp16")
_VARIANT = re.compile(
    rf"(?:{'|'.join(_WEIGHT_NAMES)})"
    r"(?:\.([\w-]+)\.safetensors(?:\.index\.json)?|\.safetensors\.index\.([\w-]+)\.json)"
)
_MAX_JSON = 1 << 25  # bytes; an index names every tensor of a model
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
        unsaid: the format of quantised weights of which the files themselves say nothing.
    """

    name: str
    component: str
    folder: Path
    subfolder: str
    tokenizer_folder: str
    files: tuple[FileStamp, ...]
    facts: PartFiles
    unsaid: str

    @classmethod
    def open(cls, folder: Path, name: str, component: str, facts: PartFiles, *, alone: bool = False) -> FolderSource:
        """Stamps the files of a part and of its companions, e.g. a tokenizer.

        Args:
            folder: the whole folder.
            name: how it is shown.
            component: which part.
            facts: the model's of this part.
            alone: whether the part and its companions lie in the folder itself.

        Raises:
            FileError: its configuration says that its weights are quantised in a way that is not read.
        """
        subfolder = "" if alone else facts.folder or component
        companions = ("",) if alone else facts.companions
        paths: list[Path] = []
        for inside in dict.fromkeys((subfolder, *companions)):
            paths += sorted(p for p in _entries(folder / inside, name) if p.suffix in _SUFFIXES)
        stamps = tuple(FileStamp.of(path) for path in paths)
        try:
            config = read_json(folder / subfolder / "config.json", name)
        except FileError:
            # whoever needs the configuration says what is wrong with it
            config = {}
        unsaid = unsaid_format(config, f"{name}/{subfolder}" if subfolder else name)
        return cls(name, component, folder, subfolder, next(iter(companions), ""), stamps, facts, unsaid)

    @property
    def role(self) -> Role:
        return self.facts.role

    @property
    def config_name(self) -> str:
        return f"{self._where}config.json"

    @property
    def weight_files(self) -> tuple[FileStamp, ...]:
        # another variant beside them changes nothing
        used = set(self._paths())
        return tuple(stamp for stamp in self.files if stamp.path in used)

    def config(self) -> dict[str, Any]:
        return dict(_config(self))

    def tensor_infos(self) -> dict[str, TensorInfo]:
        self.paths()
        return dict(_placed(self).infos)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        paths = self.paths()
        found = _placed(self)
        needed = found.needed(names)
        yield from found.fill(read_tensors(paths, list(needed), self.unsaid), needed)

    def tokenizer(self) -> Path | bytes | None:
        folder = self.folder / self.tokenizer_folder
        if has_tokenizer(folder):
            return folder
        alone = folder / _SENTENCEPIECE
        try:
            return alone.read_bytes() if alone.is_file() else None
        except OSError as error:
            raise FileError(f"{self.name!r}: {_SENTENCEPIECE} cannot be read: {error.strerror}.") from error

    @property
    def tokenizer_name(self) -> str:
        return f"{self.tokenizer_folder}/{_TOKENIZER}" if self.tokenizer_folder else _TOKENIZER

    def paths(self) -> list[Path]:
        """The weight files.

        Raises:
            FileError: see :meth:`_paths`; or a file is not the one that was there when the folder was opened.
        """
        paths = self._paths()
        for path in paths:
            if FileStamp.of(path) not in self.files:
                raise FileError(
                    f"{self._where}{path.name} of {self.name!r} was replaced after its node ran. Run again."
                )
        return paths

    @property
    def _where(self) -> str:
        return f"{self.subfolder}/" if self.subfolder else ""

    def _paths(self) -> list[Path]:
        """The safetensors files, in the index's order.

        Raises:
            FileError: there are none, or some of the shards that the index names are missing.
        """
        folder = self.folder / self.subfolder
        names = {path.name for path in _entries(folder, self.name) if path.is_file()}
        for variant in ("", *_variants(names)):
            for stem in _WEIGHT_NAMES:
                for index in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
                    if index in names:
                        return self._shards(folder / index, names)
                if f"{stem}{variant}.safetensors" in names:
                    return [folder / f"{stem}{variant}.safetensors"]
        shards = self._numbered(names)
        if shards:
            return [folder / name for name in shards]
        others = [name for name in sorted(names) if name.endswith((".bin", ".pth", ".pt", ".ckpt"))]
        why = f" It has {others[0]}, which is not read from a model folder." if others else ""
        raise FileError(f"{self.name!r} has no safetensors weights in {self.component}.{why} Get a safetensors copy.")

    def _numbered(self, names: set[str]) -> list[str]:
        """The shards of a folder without an index, none where it has none; FileError where some are missing."""
        sets = list(dict.fromkeys(tuple(shard_names(name)) for name in sorted(names)))
        for shards in sets:
            if shards and names.issuperset(shards):
                return list(shards)
        for shards in filter(None, sets):
            found = len(names & set(shards))
            raise FileError(
                f"{self.name!r} is incomplete: {self.component} has {found} of {len(shards)} parts and no index. "
                "Download it again."
            )
        return []

    def _shards(self, index: Path, names: set[str]) -> list[Path]:
        weight_map = read_json(index, self.name).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise FileError(f"{self.name!r} is damaged: {self._where}{index.name} has no weight_map. Download it.")
        shards = list(dict.fromkeys(weight_map.values()))
        absent = [shard for shard in shards if shard not in names]
        if absent or not shards:
            lacks = f"lacks {len(absent)} of {len(shards)} shards, the first is {shown(absent[0])}" if absent else ""
            why = lacks or "has an index that names no shards"
            raise FileError(f"{self.name!r} is incomplete: {self.component} {why}. Download it again.")
        return [index.with_name(shard) for shard in shards]


def _entries(folder: Path, name: str) -> list[Path]:
    """What lies in a folder; raises FileError, which calls what it belongs to ``name``."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise FileError(f"{name!r}: its folder {folder.name} cannot be read: {error.strerror}.") from error


def _variants(names: Collection[str]) -> list[str]:
    """The variants in a folder, each with its dot: those of one name are its weights in several dtypes."""
    alone = [name for name in names if not shard_names(name)]
    found = {match[1] or match[2] for name in alone if (match := _VARIANT.fullmatch(name))}
    known = [variant for variant in _VARIANTS if variant in found]
    return [f".{variant}" for variant in (*known, *sorted(found.difference(_VARIANTS)))]


def has_tokenizer(folder: Path) -> bool:
    """Whether transformers finds a tokenizer in a folder."""
    return (folder / _TOKENIZER).is_file() or all((folder / name).is_file() for name in _SLOW_TOKENIZER)


@lru_cache(maxsize=64)
def _config(source: FolderSource) -> dict[str, Any]:
    where = f"{source.config_name} of {source.name!r}"
    config = checked_config(read_json(source.folder / source.subfolder / "config.json", source.name), where)
    try:
        return source.facts.config(config)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{where} cannot be understood ({type(error).__name__}). Download it again.") from error


@lru_cache(maxsize=16)
def _placed(source: FolderSource) -> Placed:
    stored = read_header(source.paths(), source.unsaid).tensors
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
        if FileStamp.of(path).size > _MAX_JSON:
            raise FileError(f"{name!r} is damaged: {where} has more than {_MAX_JSON:,} bytes. Download it again.")
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{name!r} is incomplete: {where} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name!r} is damaged: {where} is not valid JSON. Download it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{name!r} is damaged: {where} holds no JSON object.")
    return value
