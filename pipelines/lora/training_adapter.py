"""A training adapter: what AI Toolkit puts under a distilled model while it trains, and takes off in its previews.

The adapter is merged into the weights, as they are in the run's dtype and before anything is quantised, and a live
copy at strength -1 runs in the previews. In exact arithmetic nothing is left of it; in bfloat16 the weights keep the
rounding of the merge, and a preview with adapter differs from one without by 7 levels of 255 on a tiny Z-Image.

Source: AI Toolkit extensions_built_in/diffusion_models/z_image/z_image.py, load_training_adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import FileError, LoraError
from ..handle import LoraSpec, PipelineHandle
from ..options import torch_dtype
from ..weights.checkpoint import Checkpoint
from ..weights.source import packed_as
from .file import open_lora, read_lora
from .kinds.low_rank import KIND, LowRank
from .kinds.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..files.header import FileStamp, TensorInfo
    from ..files.packed import PackedTensor
    from ..models.facts import ModelFacts
    from ..options import DType, Role
    from ..weights.source import Source


@dataclass(frozen=True)
class AdaptedSource:
    """Another source with an adapter merged into its weights; see :class:`..weights.source.Source`.

    Attributes:
        base: where the part lies.
        adapter: the adapter's file.
        adapter_name: as the user sees it.
        dtype: what the weights and the adapter are rounded to before the merge, and the result after it.
        model: whose part it is.
        checkpoint: of the base, whose layers the adapter names.
    """

    base: Source
    adapter: FileStamp
    adapter_name: str
    dtype: DType
    model: str
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        return f"{self.base.name} + {self.adapter_name}"

    @property
    def component(self) -> str:
        return self.base.component

    @property
    def role(self) -> Role:
        return self.base.role

    @property
    def config_name(self) -> str:
        return self.base.config_name

    @property
    def files(self) -> tuple[FileStamp, ...]:
        return (*self.base.files, self.adapter)

    @property
    def weight_files(self) -> tuple[FileStamp, ...]:
        return (*self.base.weight_files, self.adapter)

    def config(self) -> dict[str, Any]:
        return self.base.config()

    def tensor_infos(self) -> dict[str, TensorInfo]:
        return self.base.tensor_infos()

    def tokenizer(self) -> Path | bytes | None:
        return self.base.tokenizer()

    @property
    def tokenizer_name(self) -> str:
        return self.base.tokenizer_name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        from ..files.packed import dense

        changes, dtype, workspace = self._changes(), torch_dtype(self.dtype), Workspace("cpu")
        for name, value in self.base.read(names):
            if name in changes:
                # out of the workspace, whose memory is the next one's
                yield name, changes[name].merge(dense(value, dtype), 1.0, workspace).to(dtype, copy=True)
            else:
                yield name, value

    def _changes(self) -> dict[str, LowRank]:
        """Parameter -> its change, the factors rounded to the run's dtype."""
        from ..models import find_model

        lora = open_lora(self.adapter.path, self.adapter_name, find_model(self.model), self.checkpoint)
        if lora.stamp != self.adapter:
            raise FileError(f"{self.adapter_name!r} was replaced after its node ran. Run again to use the new file.")
        dtype, found = torch_dtype(self.dtype), {}
        for layer, change in read_lora(lora, self.component).items():
            assert isinstance(change, LowRank)
            down, up = (factor.to(dtype).float() for factor in (change.down, change.up))
            found[layer.parameter] = replace(change, down=down, up=up)
        return found


def with_training_adapter(handle: PipelineHandle, path: Path, name: str, model: ModelFacts) -> PipelineHandle:
    """A new handle on the adapted weights, with the adapter's negative before all LoRAs.

    Args:
        handle: without a training adapter.
        path: of the adapter, a LoRA.
        name: how it is shown.
        model: the handle's.

    Raises:
        FileError: the file is missing or damaged.
        LoraError: it is no adapter for this model, the handle has one already, or the weights are packed.
    """
    if not model.training_adapter:
        raise LoraError(f"AI Toolkit trains {model.title} without a training adapter. Remove the node.")
    if handle.recovery is not None:
        raise LoraError(
            f"The pipeline has a recovery adapter, {handle.recovery.name!r}, and AI Toolkit refuses a training adapter "
            "beside one. Remove one of the two nodes."
        )
    main = model.files.main
    source = handle.checkpoint.source(main)
    if isinstance(source, AdaptedSource):
        raise LoraError(f"{source.name!r} has a training adapter already. Remove one of the two nodes.")
    if packed_as(source):
        raise LoraError(
            f"{source.name!r} is quantised ({packed_as(source)}), and the trainer merges the adapter before it "
            "quantises. Choose an unquantised file."
        )
    lora = open_lora(path, name, model, handle.checkpoint)
    if lora.kinds != (KIND,) or any(layer.part != main or layer.rows or layer.into for layer in lora.layers):
        raise LoraError(f"{name!r} is {lora.title}; a training adapter is a LoRA in AI Toolkit's names.")
    adapted = AdaptedSource(source, lora.stamp, name, handle.dtype, model.id, handle.checkpoint)
    sources = tuple(adapted if one is source else one for one in handle.checkpoint.sources)
    # the live copy runs in the run's dtype, unlike a trained LoRA
    negative = LoraSpec(name, lora.stamp, -1.0, "live", lora.title, parts=(main,), arithmetic="peft")
    checkpoint = Checkpoint(handle.checkpoint.name, sources)
    return replace(handle, checkpoint=checkpoint, loras=(negative, *handle.loras))
