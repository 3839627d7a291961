"""A component of a model folder in diffusers' layout."""

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

if TYPE_CHECKING:
    import torch

# diffusers' and transformers' names of a component's weights, single or sharded
_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
_SUFFIXES = (".json", ".safetensors", ".model")  # what a change of makes another checkpoint


@dataclass(frozen=True)
class FolderSource:
    """See :class:`.source.Source`.

    Attributes:
        name: the whole folder's.
        component: subfolder.
        folder: the whole model's, with ``model_index.json``.
        files: every configuration and weight file, stamped; tells this folder from a changed one.
        strip: what the file's names may have in front of the model's.
    """

    name: str
    component: str
    folder: Path
    files: tuple[FileStamp, ...]
    strip: str = ""

    @classmethod
    def open(cls, folder: Path, name: str, component: str, companions: tuple[str, ...], strip: str) -> FolderSource:
        """Stamps the files of a component and of its companions, e.g. a tokenizer."""
        paths: list[Path] = []
        for subfolder in (component, *companions):
            paths += sorted(p for p in (folder / subfolder).iterdir() if p.suffix in _SUFFIXES)
        return cls(name, component, folder, tuple(FileStamp.of(path) for path in paths), strip)

    @property
    def config_name(self) -> str:
        return f"{self.component}/config.json"

    @property
    def weight_files(self) -> tuple[FileStamp, ...]:
        return tuple(stamp for stamp in self.files if stamp.path.suffix == ".safetensors")

    def config(self) -> dict[str, Any]:
        return dict(_config(self))

    def tensor_infos(self) -> dict[str, TensorInfo]:
        return {
            name.removeprefix(self.strip): info for header in self.headers() for name, info in header.tensors.items()
        }

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        wanted = set(names)
        for header in self.headers():
            found = [name for name in header.tensors if name.removeprefix(self.strip) in wanted]
            for name, value in read_tensors(header.path, found):
                yield name.removeprefix(self.strip), value

    def tokenizer(self) -> Path | bytes | None:
        folder = self.folder / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            return folder
        alone = folder / "tokenizer.model"
        return alone.read_bytes() if alone.is_file() else None

    @property
    def tokenizer_name(self) -> str:
        return "tokenizer/tokenizer.json"

    def headers(self) -> list[Header]:
        """The checked headers of the weight files.

        Raises:
            FileError: see :meth:`_paths`; a file is damaged, or is not the one that was there when the folder was
                opened.
        """
        paths = self._paths()
        for path in paths:
            if FileStamp.of(path) not in self.files:
                where = f"{self.component}/{path.name} of {self.name!r}"
                raise FileError(f"{where} was replaced after its node ran. Run again.")
        return [read_header(path) for path in paths]

    def _paths(self) -> list[Path]:
        """The safetensors files, in the index's order.

        Raises:
            FileError: there are none, or some of the shards that the index names are missing.
        """
        folder = self.folder / self.component
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
            raise FileError(f"{self.name!r} is damaged: {folder.name}/{index.name} has no weight_map. Download it.")
        shards = [folder / shard for shard in dict.fromkeys(weight_map.values())]
        absent = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
        if absent or not shards:
            raise FileError(
                f"{self.name!r} is incomplete: {folder.name} lacks {', '.join(absent) or 'its shards'}. "
                "Download it again."
            )
        return shards


@lru_cache(maxsize=64)
def _config(source: FolderSource) -> dict[str, Any]:
    return read_json(source.folder / source.component / "config.json", source.name)


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
