"""One LoRA file against one model: what it changes, what its metadata tells, and its tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..checkpoint import Checkpoint
from ..errors import LoraError
from ..files.safetensors import FileStamp, Header, read_header, read_tensors
from ..models.facts import ModelFacts
from .formats import LoraLayer, recognise
from .kinds import Adapter, Kind

PART = "transformer"
_MOST_BLOCKS = 12  # lines of an error that list blocks


@dataclass(frozen=True)
class LoraFile:
    """A file that fits its model.

    Attributes:
        name: as the user sees it.
        header: tensors' names and shapes, metadata.
        kind: what sort of change it makes.
        layers: what it changes, in the file's order.
    """

    name: str
    header: Header
    kind: Kind
    layers: tuple[LoraLayer, ...]

    @property
    def trigger_word(self) -> str:
        """The trigger word of an AI Toolkit job, or an empty string.

        AI Toolkit writes it as the only tag of ``ss_tag_frequency`` (BaseSDTrainProcess.update_training_metadata).
        """
        tags = _json_object(self.header.metadata.get("ss_tag_frequency"))
        words = {word for folder in tags.values() if isinstance(folder, dict) for word in folder}
        return words.pop() if len(words) == 1 else ""

    def summary(self) -> str:
        """A few lines for people: format, layers, ranks, dtype, and what the metadata tells."""
        ranks = Counter(layer.rank or 0 for layer in self.layers)
        alphas = sum("alpha" in layer.keys for layer in self.layers)
        dtypes = sorted({info.dtype for info in self.header.tensors.values()})
        lines = [
            f"{self.name}: {self.kind.title}, {len(self.layers)} layers",
            "rank " + ", ".join(f"{rank or 'full'} ({count} layers)" for rank, count in sorted(ranks.items())),
            f"dtype {', '.join(dtypes)}; alpha {f'on {alphas} layers' if alphas else 'none (scale 1)'}",
        ]
        metadata = self.header.metadata
        software = _json_object(metadata.get("software"))
        training = _json_object(metadata.get("training_info"))
        facts = {
            "trained with": " ".join(str(software[key]) for key in ("name", "version") if key in software),
            "step": training.get("step"),
            "base model": metadata.get("ss_base_model_version"),
            "name": metadata.get("ss_output_name") or metadata.get("name"),
            "trigger word": self.trigger_word,
        }
        lines += [f"{label}: {value}" for label, value in facts.items() if value not in (None, "")]
        return "\n".join(lines)


def open_lora(path: Path, name: str, model: ModelFacts, checkpoint: Checkpoint) -> LoraFile:
    """Reads a file's header and checks it against the model's layers; reads no weights.

    Raises:
        FileError: the file is missing, damaged, or no safetensors file.
        LoraError: it does not fit the model; the message names the layers, or the model that it was made for.
    """
    return _open(FileStamp.of(path), name, model.id, checkpoint)


@lru_cache(maxsize=64)
def _open(stamp: FileStamp, name: str, model_id: str, checkpoint: Checkpoint) -> LoraFile:
    from ..models import find_model

    model = find_model(model_id)
    header = read_header(stamp.path)
    targets = lora_targets(checkpoint)
    prefixes = tuple(model.lora.prefixes)
    kind, layers = recognise(header, name, model.title, prefixes, targets.keys())
    _check_fit(layers, targets, name, model.title)
    return LoraFile(name, header, kind, tuple(layers))


@lru_cache(maxsize=8)
def lora_targets(checkpoint: Checkpoint) -> Mapping[str, tuple[int, int]]:
    """Module name -> (out, in) of every layer that a LoRA can change, from the weight files' headers."""
    return {
        name.removesuffix(".weight"): (info.shape[0], info.shape[1])
        for name, info in checkpoint.tensor_infos(PART).items()
        if name.endswith(".weight") and len(info.shape) == 2
    }


def _check_fit(layers: list[LoraLayer], targets: Mapping[str, tuple[int, int]], name: str, title: str) -> None:
    unmatched = [layer for layer in layers if layer.module not in targets]
    if unmatched:
        blocks = Counter(_block(layer.module) for layer in unmatched)
        lines = [f"  {block}: {count} layers" for block, count in list(blocks.items())[:_MOST_BLOCKS]]
        if len(blocks) > _MOST_BLOCKS:
            lines.append(f"  and {len(blocks) - _MOST_BLOCKS} more blocks")
        first = next(iter(unmatched[0].keys.values()))
        raise LoraError(
            f"{name!r} does not fit these weights of {title}: {len(unmatched)} of its {len(layers)} layers are not in "
            f"the model, the first is {first!r}. Was it trained on another version of the model?\n" + "\n".join(lines)
        )
    for layer in layers:
        if layer.shape != targets[layer.module]:
            raise LoraError(
                f"{name!r} does not fit these weights of {title}: {layer.module!r} is {list(targets[layer.module])} in "
                f"the model, and the file's pair makes {list(layer.shape)}. It was trained on a model of another size."
            )


def _block(module: str) -> str:
    """``layers.30.attn.to_q`` -> ``layers.30``; a name without a number stays as it is."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: index + 1])
    return module


def read_lora(lora: LoraFile) -> dict[str, Adapter]:
    """Module name -> what is done to it. All tensors are read and checked before the first is returned.

    Raises:
        LoraError: a tensor holds NaN or Inf.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for key, value in read_tensors(lora.header.path):
        # a copy even where the file is float32: what the library returns may still be mapped to the file
        tensor = value.to(torch.float32, copy=True)
        # the alpha of a whole LoKr is a mark, inf in float16, and not computed with
        if not bool(torch.isfinite(tensor).all()) and not (key.endswith(".alpha") and bool(torch.isposinf(tensor))):
            raise LoraError(
                f"{lora.name!r} holds NaN or Inf in {key!r}: the training went wrong, or the file is damaged. "
                "Use an earlier save of the job."
            )
        tensors[key] = tensor
    return {
        layer.module: lora.kind.make({role: tensors[key] for role, key in layer.keys.items()}) for layer in lora.layers
    }


def _json_object(text: str | None) -> dict:
    """The metadata of other trainers may hold anything: what is no JSON object tells nothing."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
