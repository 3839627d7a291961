"""An accuracy recovery adapter: what AI Toolkit trains on top of weights of few bits, and leaves there for good.

A job asks for one by ``qtype: "uint3|owner/name/file.safetensors"``. The layers that the file names are quantised, all
others stay as they are: the trainer sets those to uint8, a type whose every layer it refuses. The adapter runs live
below all other LoRAs, at strength 1, with factors in the run's dtype, and nothing is merged.

Of optimum-quanto's types the trainer leaves no weight in a layer that is quantised by itself, as these are, and stops
at the first picture. A LoKr has to be in LyCORIS' names and whole; since January 2026 (5b5aadad) AI Toolkit finds no
layer in such a file, and stops.

Source: AI Toolkit toolkit/util/quantize.py, quantize_model (27a03a91).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError, LoraError
from ..handle import LoraSpec, PipelineHandle, Recovery
from ..options import RECOVERY_TYPES
from ..weights.source import packed_as
from ..words import shown
from .file import open_lora
from .kinds import lokr, low_rank
from .training_adapter import AdaptedSource

if TYPE_CHECKING:
    from pathlib import Path

    from ..models.facts import ModelFacts
    from ..options import RecoveryType
    from .file import LoraFile

_UNDECIDED = "model default"  # of AITK Runtime Options


def with_recovery_adapter(
    handle: PipelineHandle, path: Path, name: str, qtype: str, model: ModelFacts
) -> PipelineHandle:
    """A new handle whose weights are quantised under an adapter, which comes before all LoRAs.

    Args:
        handle: without an adapter of the trainer's.
        path: of the adapter, a LoRA or a LoKr.
        name: how it is shown.
        qtype: one of ``RECOVERY_TYPES``.
        model: the handle's.

    Raises:
        FileError: the file is missing or damaged.
        InputError: the type is none that runs under an adapter, or AITK Runtime Options says another one.
        LoraError: it is no adapter for this model, the handle has an adapter already, or the weights are packed.
    """
    if model.recovery_adapters is None:
        raise LoraError(f"AI Toolkit runs {model.title} without a recovery adapter. Remove the node.")
    if handle.recovery is not None:
        raise LoraError(
            f"The pipeline has a recovery adapter already, {handle.recovery.name!r}. Remove one of the two nodes."
        )
    main = model.files.main
    source = handle.checkpoint.source(main)
    if isinstance(source, AdaptedSource):
        raise LoraError(
            f"{source.name!r} has a training adapter, and AI Toolkit refuses a recovery adapter beside one. Remove one "
            "of the two nodes."
        )
    if packed_as(source):
        raise LoraError(
            f"{source.name!r} is quantised ({packed_as(source)}), and a recovery adapter belongs on weights that are "
            "quantised as it was trained. Choose an unquantised file."
        )
    recovery = Recovery(name, main, check_recovery_type(qtype), ())
    _check_options(handle, recovery)
    lora = open_lora(path, name, model, handle.checkpoint)
    _check_format(lora, main)
    recovery = replace(recovery, layers=tuple(dict.fromkeys(layer.module for layer in lora.layers)))
    own = LoraSpec(
        name, lora.stamp, 1.0, "live", lora.title, parts=(main,), companion=lora.companion, arithmetic="recovery"
    )
    return replace(handle, recovery=recovery, loras=(own, *handle.loras))


def check_recovery_type(qtype: object) -> RecoveryType:
    """Raises InputError where no layer can be held so under an adapter."""
    for known in RECOVERY_TYPES:
        if known == qtype:
            return known
    raise InputError(
        f"qtype {shown(qtype)} is none that AI Toolkit runs under a recovery adapter. Choose one of: "
        f"{', '.join(RECOVERY_TYPES)}."
    )


def _check_options(handle: PipelineHandle, recovery: Recovery) -> None:
    chosen = handle.options.transformer_quantization
    if chosen not in (_UNDECIDED, recovery.quantization):
        raise InputError(
            f"transformer_quantization of AITK Runtime Options is {chosen}, and the recovery adapter {recovery.name!r} "
            f"is for {recovery.qtype}. Set it to {_UNDECIDED}."
        )


def _check_format(lora: LoraFile, main: str) -> None:
    layers = lora.layers
    own = all(layer.part == main and not (layer.rows or layer.into or layer.in_place) for layer in layers)
    if lora.kinds not in ((low_rank.KIND,), (lokr.KIND,)) or any(layer.decomposed for layer in layers) or not own:
        raise LoraError(
            f"{lora.name!r} is {lora.title}{'' if own else ' with shares of layers, or of other parts'}; a recovery "
            "adapter is a LoRA in AI Toolkit's names, or a LoKr in LyCORIS'."
        )
    ranks = sorted({layer.rank for layer in layers if layer.rank is not None})
    if lora.kinds == (lokr.KIND,) and ranks:
        raise LoraError(
            f"{lora.name!r} has factors of rank {ranks[0]}; of a LoKr AI Toolkit reads whole ones alone as a recovery "
            "adapter."
        )
    if len(ranks) > 1:
        raise LoraError(
            f"{lora.name!r} has layers of rank {', '.join(map(str, ranks))}. A recovery adapter has one: AI Toolkit "
            "would cut or fill the others."
        )
