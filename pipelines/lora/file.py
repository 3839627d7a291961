"""One LoRA file against one model: what it changes, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoraError
from ..files.header import FileStamp, Header
from ..files.safetensors import read_header, read_in_runs
from ..handle import LoraSpec
from ..layers.finite import is_finite
from ..words import shown
from .formats import recognise
from .kinds import KINDS, ia3, lokr, oft_v2
from .kinds.decomposed import Decomposed
from .kinds.workspace import Workspace
from .layers import DAMAGED
from .names import names_of
from .peft_config import PeftConfig, companion_of, read_configs

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..options import Application
    from ..weights.checkpoint import Checkpoint
    from .kinds import Adapter, Kind
    from .layers import LoraLayer


@dataclass(frozen=True)
class LoraFile:
    """A file that fits its model.

    Attributes:
        name: as the user sees it.
        stamp: the file as it was when it was read.
        companion: PEFT's configuration beside it, where there is one.
        header: tensors' names and shapes, metadata.
        layers: what it changes, in the file's order; the model's main part first.
        notes: what of it was skipped, and why; a sentence each.
    """

    name: str
    stamp: FileStamp
    companion: FileStamp | None
    header: Header
    layers: tuple[LoraLayer, ...]
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of its layers, each once; those that others' files hold too are left out beside others."""
        found = {layer.kind for layer in self.layers}
        kinds = tuple(kind for kind in KINDS if kind in found)
        return tuple(kind for kind in kinds if not kind.accompanies) or kinds

    @property
    def title(self) -> str:
        """The format, for people."""
        title = " and ".join(kind.title for kind in self.kinds)
        return title + (" with dora_scale" if any(layer.decomposed for layer in self.layers) else "")

    @property
    def mergeable(self) -> bool:
        return all(kind.mergeable for kind in self.kinds) and not any(layer.decomposed for layer in self.layers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model that it changes."""
        return tuple(dict.fromkeys(layer.part for layer in self.layers))

    def spec(self, strength: float, application: Application) -> LoraSpec:
        """This file as an entry of a handle."""
        return LoraSpec(
            self.name, self.stamp, strength, application, self.title, self.mergeable, self.parts, self.companion
        )


def open_lora(path: Path, name: str, model: ModelFacts, checkpoint: Checkpoint) -> LoraFile:
    """Reads a file's header and checks it against the model's layers; reads no weights.

    Raises:
        FileError: the file is missing, damaged, or no safetensors file.
        LoraError: it does not fit the model; the message names the layers, or the model that it was made for.
    """
    return _open(FileStamp.of(path), companion_of(path), name, model.id, checkpoint)


@lru_cache(maxsize=64)
def _open(stamp: FileStamp, companion: FileStamp | None, name: str, model_id: str, checkpoint: Checkpoint) -> LoraFile:
    from ..models import find_model

    model = find_model(model_id)
    header = read_header(stamp.path)
    contents = recognise(header, name, model.title, names_of(model_id, checkpoint))
    configs = read_configs(companion, header.metadata, name, model.files.main)
    for layer in contents.layers:
        if layer.kind is oft_v2.KIND and layer.part in configs and not configs[layer.part].usual_turns:
            raise LoraError(
                f"{name!r} cannot be applied: its configuration changes how OFT's blocks are made (use_cayley_neumann, "
                "num_cayley_neumann_terms or coft). Train with PEFT's defaults for these."
            )
    # the main part's first, whatever the file's order
    layers = sorted(contents.layers, key=lambda layer: layer.part != model.files.main)
    return LoraFile(
        name, stamp, companion, header, tuple(_with_alpha(layer, configs) for layer in layers), contents.notes
    )


def _with_alpha(layer: LoraLayer, configs: Mapping[str, PeftConfig]) -> LoraLayer:
    config = configs.get(layer.part)
    if config is None or "alpha" in layer.keys:
        return layer
    rank = layer.rank
    if layer.kind is lokr.KIND and rank is None:
        # PEFT scales by the rank that was asked for, also where both factors are whole
        rank = config.rank_of(layer.name)
    if rank is None:
        return layer
    return replace(layer, rank=rank, alpha=config.alpha_of(layer.name, rank))


def read_lora(lora: LoraFile, part: str, check: Callable[[], None] = lambda: None) -> dict[LoraLayer, Adapter]:
    """What is done to each layer of a part. The tensors of all parts are read and checked before any is returned.

    ``check`` is called now and then and raises to interrupt.

    Raises:
        LoraError: a tensor holds NaN or Inf.
    """
    import torch

    # a whole LoKr's alpha is a mark, inf in float16, and not computed with
    scaled = [layer for layer in lora.layers if "alpha" in layer.keys]
    marks = {layer.keys["alpha"] for layer in scaled if layer.kind is lokr.KIND and layer.rank is None}
    marks -= {layer.keys["alpha"] for layer in scaled if layer.kind is not lokr.KIND or layer.rank is not None}
    used = {key: None for layer in lora.layers for key in layer.keys.values()}
    wanted = {key for layer in lora.layers if layer.part == part for key in layer.keys.values()}
    widen = {key for layer in lora.layers if layer.decomposed or not layer.kind.widens for key in layer.keys.values()}
    stored = (torch.bfloat16, torch.float16, torch.float32)
    tensors: dict[str, torch.Tensor] = {}
    for whole, values in read_in_runs(lora.header.path, list(used), check):
        # at once; a mark may be inf
        finite = whole.dtype in stored and is_finite(whole)
        for key, value in values.items():
            tensor = value if value.dtype in stored and key not in widen else value.to(torch.float32)
            if not finite and key not in marks and not is_finite(tensor):
                raise LoraError(
                    f"{lora.name!r} holds NaN or Inf in {key!r}: the training went wrong, or the file is damaged. "
                    "Use an earlier save of the job."
                )
            if key in wanted:
                tensors[key] = tensor
    return {layer: _checked(lora, layer, tensors) for layer in lora.layers if layer.part == part}


def _checked(lora: LoraFile, layer: LoraLayer, tensors: dict) -> Adapter:
    import torch

    adapter = _adapter(layer, tensors)
    if layer.kind is ia3.KIND:
        try:
            # without values: which axis it is for is told by a value, that of on_input
            adapter.merge(torch.empty(layer.shape, device="meta"), 1.0, Workspace("meta"))
        except RuntimeError as error:
            raise LoraError(
                f"{lora.name!r} is damaged: {shown(layer.name)} is of another length than on_input says. {DAMAGED}"
            ) from error
    return adapter


def _adapter(layer: LoraLayer, tensors: dict) -> Adapter:
    import torch

    roles = {role: tensors[key] for role, key in layer.keys.items()}
    scale = roles.pop("dora_scale", None)
    if layer.alpha is not None:
        roles |= {"alpha": torch.tensor(layer.alpha), "rank": torch.tensor(layer.rank)}
    adapter = layer.kind.make(roles)
    if scale is not None:
        adapter = Decomposed.of(adapter, scale)
    return adapter if layer.rows is None else adapter.rows(*layer.rows)
