"""What a LoRA file tells about itself, for people: format, ranks, alpha, and what the trainer wrote down."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..files.safetensors import read_tensors
from .kinds.kind import effective_alpha

if TYPE_CHECKING:
    from .file import LoraFile
    from .layers import LoraLayer

# metadata keys of kohya's scripts (train_util.py) and of modelspec that say how a file was trained
_SETTINGS = {
    "base model file": ("ss_sd_model_name",),
    "network": ("ss_network_module",),
    "network dim / alpha": ("ss_network_dim", "ss_network_alpha"),
    "network arguments": ("ss_network_args",),
    "timestep sampling": ("ss_timestep_sampling",),
    "weighting": ("ss_weighting_scheme",),
    "discrete flow shift": ("ss_discrete_flow_shift",),
    "prediction": ("ss_model_prediction_type",),
    "sigmoid scale": ("ss_sigmoid_scale",),
    "resolution": ("ss_resolution",),
    "learning rate": ("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr"),
    "optimizer": ("ss_optimizer",),
    "steps / epochs": ("ss_steps", "ss_num_epochs"),
    "comment": ("ss_training_comment",),
    "architecture": ("modelspec.architecture",),
}
_LONGEST = 200  # characters of one value
_KOHYA = "kohya's sd-scripts"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def trigger_word(lora: LoraFile) -> str:
    """The trigger word of an AI Toolkit job, or an empty string."""
    return trigger_in(lora.header.metadata)


def trigger_in(metadata: Mapping[str, str]) -> str:
    """The trigger word in a file's metadata, or an empty string.

    AI Toolkit writes it as the only tag of ``ss_tag_frequency`` (BaseSDTrainProcess.update_training_metadata). It is
    handed on into prompts, so it is one line of ordinary length, without what would steer a terminal.
    """
    tags = _json_object(metadata.get("ss_tag_frequency"))
    words = {word for folder in tags.values() if isinstance(folder, dict) for word in folder}
    return _line(_ESCAPE.sub("", words.pop()[: 4 * _LONGEST])).strip() if len(words) == 1 else ""


def trained_with(metadata: Mapping[str, str]) -> str:
    """The program that wrote a file, with its version; empty where the metadata do not say."""
    software = _json_object(metadata.get("software"))
    module = metadata.get("ss_network_module", "")
    own = "sshs_model_hash" in metadata or module.startswith(("networks.", "lycoris."))
    kohya = _KOHYA if own and not software else ""
    return _line(" ".join(str(software[key]) for key in ("name", "version") if key in software)) or kohya


def step_in(metadata: Mapping[str, str]) -> int | None:
    """The training's step at which AI Toolkit saved a file; None where the metadata do not say."""
    step = _json_object(metadata.get("training_info")).get("step")
    return step if isinstance(step, int) else None


def summary(lora: LoraFile) -> str:
    """A few lines: format, layers and ranks of each part, dtype, alpha, and what the metadata tells."""
    dtypes = sorted({info.dtype for info in lora.header.tensors.values()})
    alphas = _alphas(lora)
    lines = [f"{lora.name}: {lora.title}, {_layers(len(_files_layers(lora.layers)))}, dtype {', '.join(dtypes)}"]
    for part in lora.parts:
        own = _files_layers([layer for layer in lora.layers if layer.part == part])
        differences = [layer for layer in own if layer.kind.accompanies and layer.kind not in lora.kinds]
        trained = [layer for layer in own if layer not in differences]
        texts = [f"{_ranks(trained)}; {_alpha_text(trained, alphas)}"] if trained else []
        if differences:
            texts += [f"{'and ' if trained else ''}{len(differences)} plain differences (.diff, .diff_b)"]
        lines += [f"{part}: {_layers(len(trained or differences))}, {', '.join(texts)}"]
    return "\n".join([*lines, *lora.notes, *_facts(lora)])


def _files_layers(layers: tuple[LoraLayer, ...] | list[LoraLayer]) -> list[LoraLayer]:
    """One for each layer of the file: a fused one changes several of the model."""
    return list({next(iter(layer.keys.values())): layer for layer in layers}.values())


def _ranks(layers: list[LoraLayer]) -> str:
    ranks = Counter((layer.rank or 0, "no rank" if layer.kind.of_weight else "full rank") for layer in layers)
    texts = [f"rank {rank}" if rank else without for rank, without in sorted(ranks)]
    if len(ranks) == 1:
        return texts[0]
    return ", ".join(f"{text} ({_layers(ranks[rank])})" for text, rank in zip(texts, sorted(ranks), strict=True))


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def _alphas(lora: LoraFile) -> dict[str, float]:
    keys = [layer.keys["alpha"] for layer in lora.layers if "alpha" in layer.keys]
    return {key: float(value.float()) for key, value in read_tensors(lora.header.path, list(dict.fromkeys(keys)))}


def _alpha(layer: LoraLayer, alphas: Mapping[str, float]) -> float | None:
    """Of a layer: in the file, or told beside its tensors."""
    return alphas[layer.keys["alpha"]] if "alpha" in layer.keys else layer.alpha


def _alpha_text(layers: list[LoraLayer], alphas: Mapping[str, float]) -> str:
    # whole factors are not scaled: their alpha, of a mere mark's size, would look like a strength
    low_rank = [layer for layer in layers if layer.rank is not None]
    own = [(layer, value) for layer in low_rank if (value := _alpha(layer, alphas)) is not None]
    found = Counter(value for _, value in own)
    if not found:
        return "no alpha (scale 1)" if low_rank else "scale 1"
    values = sorted(found)
    text = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    scales = sorted({effective_alpha(value, layer.rank) / layer.rank for layer, value in own if layer.rank})
    spread = f"{scales[0]:.3g}" + (f" to {scales[-1]:.3g}" if len(scales) > 1 else "")
    without = len(low_rank) - sum(found.values())
    return f"alpha {text}, scale alpha / rank = {spread}" + (
        f" (no alpha on {_layers(without)}: scale 1)" if without else ""
    )


def _facts(lora: LoraFile) -> Iterator[str]:
    metadata = lora.header.metadata
    program = trained_with(metadata)
    facts = {
        "trained with": program,
        "step": _json_object(metadata.get("training_info")).get("step"),
        "base model": metadata.get("ss_base_model_version"),
        "name": metadata.get("ss_output_name") or metadata.get("name"),
        "trigger word": trigger_word(lora),
    }
    facts |= {
        label: " / ".join(metadata[key] for key in keys if metadata.get(key) not in (None, "", "None"))
        for label, keys in _SETTINGS.items()
    }
    for label, value in facts.items():
        if value not in (None, ""):
            text = str(value)
            yield f"{label}: {_line(text)}{'...' if len(text) > _LONGEST else ''}"
    if any(key.startswith("base_model.model.") for key in lora.header.tensors) and not any(
        _alpha(layer, dict.fromkeys(layer.keys.values(), 0.0)) is not None for layer in lora.layers
    ):
        yield "PEFT keeps alpha in adapter_config.json: put it beside the file as PEFT saved it, or alpha is the rank"
    if program == _KOHYA:
        yield "the system prompt of the training is not in the file: set it on the sampler, recipe sd-scripts"


def _line(text: str) -> str:
    """One line, without what would steer a terminal, cut."""
    return " ".join("".join(one if one.isprintable() else " " for one in text[: 4 * _LONGEST]).split())[:_LONGEST]


def _json_object(text: str | None) -> dict:
    """The metadata of other trainers may hold anything: what is no JSON object tells nothing."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
