"""A model folder in diffusers' layout: which tensors lie in which file, and whether they are all there.

A :class:`Checkpoint` is a frozen value that is made without reading any weights. It is part of the pipeline handle, so
that a folder whose files were replaced is another checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileError
from .files.safetensors import FileStamp, Header, TensorInfo, read_header, read_tensors

if TYPE_CHECKING:
    import torch

MODEL_INDEX = "model_index.json"
# diffusers' and transformers' names of a component's weights, single or sharded
_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
_SUFFIXES = (".json", ".safetensors", ".model")  # what a change of makes another checkpoint
_SAMPLES = 16  # places of each file that the fingerprint reads
_SAMPLE_SIZE = 65536  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder.

    Attributes:
        name: how it is shown: a hub id with its commit, or a folder name. Never an absolute path.
        folder: where it lies.
        files: every configuration and weight file of the components, stamped; tells this folder from a changed one.
    """

    name: str
    folder: Path
    files: tuple[FileStamp, ...]

    @classmethod
    def open(cls, folder: Path, name: str, components: Sequence[str]) -> Checkpoint:
        """Looks at a folder without reading weights.

        Args:
            folder: a folder with ``model_index.json``.
            name: how it is shown.
            components: subfolders that the model needs, e.g. ``transformer``.

        Raises:
            FileError: the folder, its index, a component or a weight file is missing.
        """
        if not (folder / MODEL_INDEX).is_file():
            raise FileError(f"{name!r} is no diffusers model folder: it has no {MODEL_INDEX}.")
        missing = [component for component in components if not (folder / component).is_dir()]
        if missing:
            raise FileError(
                f"{name!r} is incomplete: it has no folder {', '.join(missing)}. "
                "Download the whole repository, not only the transformer."
            )
        paths = [folder / MODEL_INDEX]
        for component in components:
            paths += sorted(p for p in (folder / component).iterdir() if p.suffix in _SUFFIXES)
        return cls(name, folder, tuple(FileStamp.of(path) for path in paths))

    def config(self, component: str) -> dict[str, Any]:
        """The component's ``config.json``.

        Raises:
            FileError: it is missing or no JSON object.
        """
        return dict(_config(self, component))

    def weight_files(self, component: str) -> list[Path]:
        """The component's safetensors files, in the index's order.

        Raises:
            FileError: there are none, or some of the shards that the index names are missing.
        """
        folder = self.folder / component
        for stem in _WEIGHT_NAMES:
            index = folder / f"{stem}.safetensors.index.json"
            if index.is_file():
                weight_map = _read_json(index, self.name).get("weight_map")
                if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                    raise FileError(
                        f"{self.name!r} is damaged: {component}/{index.name} has no weight_map. Download it."
                    )
                shards = [folder / shard for shard in dict.fromkeys(weight_map.values())]
                absent = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
                if absent or not shards:
                    raise FileError(
                        f"{self.name!r} is incomplete: {component} lacks {', '.join(absent) or 'its shards'}. "
                        "Download it again."
                    )
                return shards
            if (folder / f"{stem}.safetensors").is_file():
                return [folder / f"{stem}.safetensors"]
        others = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".ckpt")]
        why = f" It has {others[0]}, which is not loaded: a pickle can run code." if others else ""
        raise FileError(f"{self.name!r} has no safetensors weights in {component}.{why} Get a safetensors copy.")

    def headers(self, component: str) -> list[Header]:
        """The checked headers of the component's weight files.

        Raises:
            FileError: see :meth:`weight_files`; a file is damaged, or is not the one that was there when the folder
                was opened.
        """
        paths = self.weight_files(component)
        for path in paths:
            if FileStamp.of(path) not in self.files:
                raise FileError(f"{component}/{path.name} of {self.name!r} was replaced after its node ran. Run again.")
        return [read_header(path) for path in paths]

    def tensor_infos(self, component: str) -> dict[str, TensorInfo]:
        """Name -> dtype and shape of all tensors of a component, as the files name them."""
        return {name: info for header in self.headers(component) for name, info in header.tensors.items()}

    def read(self, component: str, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields those tensors of a component, on the CPU, in their stored dtype."""
        wanted = set(names)
        for header in self.headers(component):
            yield from read_tensors(header.path, [name for name in header.tensors if name in wanted])

    def check_complete(
        self, component: str, expected: Mapping[str, Sequence[int]], prefix: str = "", surplus: Sequence[str] = ()
    ) -> None:
        """Compares the files with what the model needs, before anything is loaded.

        Args:
            component: subfolder.
            expected: state-dict name -> shape.
            prefix: what the file's names may have in front of the model's.
            surplus: parts of names that may be there although the model has no place for them.

        Raises:
            FileError: tensors are missing, have other shapes or no place in the model; or a file is damaged.
        """
        infos = self.tensor_infos(component)
        found = {name.removeprefix(prefix): info for name, info in infos.items()}
        missing = [name for name in expected if name not in found]
        if missing:
            raise FileError(
                f"{self.name!r} is incomplete: {component} lacks {len(missing)} of {len(expected)} tensors, "
                f"the first is {missing[0]!r}. Download it again."
            )
        unknown = [name for name in found if name not in expected and not any(part in name for part in surplus)]
        if unknown:
            raise FileError(
                f"{self.name!r} does not fit its own {component}/config.json: the model has no place for "
                f"{len(unknown)} of its tensors, the first is {unknown[0]!r}. Download both from one repository."
            )
        for name, shape in expected.items():
            if found[name].shape != tuple(shape):
                raise FileError(
                    f"{self.name!r} does not fit its own {component}/config.json: {name!r} has shape "
                    f"{list(found[name].shape)} in the file and {list(shape)} in the model."
                )

    def fingerprint(self) -> str:
        """16 hex digits that tell these weights from others.

        Made of every weight file's size, header and samples of its data: the files are too large to be hashed whole
        before each first picture.
        """
        return _fingerprint(tuple(stamp for stamp in self.files if stamp.path.suffix == ".safetensors"), self.folder)


@lru_cache(maxsize=64)
def _config(checkpoint: Checkpoint, component: str) -> dict[str, Any]:
    return _read_json(checkpoint.folder / component / "config.json", checkpoint.name)


@lru_cache(maxsize=16)
def _fingerprint(stamps: tuple[FileStamp, ...], folder: Path) -> str:
    digest = hashlib.sha256()
    for stamp in stamps:
        digest.update(f"{stamp.path.relative_to(folder).as_posix()}\0{stamp.size}\0".encode())
        digest.update(repr(read_header(stamp.path).tensors).encode())
        with stamp.path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(stamp.size * index // _SAMPLES)
                digest.update(file.read(_SAMPLE_SIZE))
    return digest.hexdigest()[:16]


def _read_json(path: Path, name: str) -> dict[str, Any]:
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
