"""A job's model section: what was trained, and what has to be loaded to render as the trainer did.

Sources: AI Toolkit config_modules.py ModelConfig, train_tools.py get_torch_dtype (27a03a91).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..models import catalogue
from ..models.option import VAE_TILING
from ..options import Chosen, Quantization, RuntimeOptions
from ..words import shown
from .adapters import adapter_problems, recovery_adapter, takes_training_adapter
from .architecture import arch_of, facts_of
from .config_text import object_or_empty
from .job import JobModel
from .model_kwargs import unknown_kwargs
from .quantisation import NO_TYPE, TYPES, denoiser_type, encoder_type, encoder_types, offloads

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..options import DType

# AI Toolkit's names of dtypes
DTYPES: dict[str, DType] = {
    "float": "float32", "fp32": "float32", "single": "float32", "float32": "float32",
    "fp16": "float16", "half": "float16", "float16": "float16",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
# keys of the section that name files
_FILES = (
    "extras_name_or_path", "te_name_or_path", "vae_path", "unet_path", "refiner_name_or_path", "lora_path",
    "assistant_lora_path", "inference_lora_path", "unconditional_lora_path", "accuracy_recovery_adapter",
)  # fmt: skip
# and with them all that change what is loaded or how it computes
_EXTRAS = (*_FILES, "layer_offloading", "vae_dtype", "te_dtype", "compile", "block_compile")


@dataclass(frozen=True)
class WantedModel:
    """What a job's previews were rendered with, in this pack's terms.

    Attributes:
        id: in the catalogue; empty where this pack does not run the model.
        base: the weights, a repository's id or a path on the trainer's machine.
        dtype: of the computation.
        options: with the quantisation of both parts, and tiles where AI Toolkit decodes in tiles.
        training_adapter: the adapter that AI Toolkit trained with, a repository's file or a path; empty without one.
        recovery_adapter: the accuracy recovery adapter below the LoRA, likewise.
        recovery_type: how the adapter's layers are held.
        elsewhere: key of the model section -> what it names, for parts that AI Toolkit takes from there.
        notes: what other files the section names, and what comes of them; a sentence each.
        problems: why a picture cannot be rendered as the trainer did, a sentence each.
    """

    id: str
    base: str
    dtype: DType
    options: RuntimeOptions
    training_adapter: str = ""
    recovery_adapter: str = ""
    recovery_type: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def read_model(process: Mapping[str, Any], trained_with: str) -> tuple[JobModel, tuple[str, ...]]:
    """The model section of a process with its defaults, and a sentence for each of its values that is taken otherwise.

    Args:
        process: plain data.
        trained_with: AI Toolkit's version, which decides how some models' text encoders were quantised; may be empty.
    """
    section, train = object_or_empty(process.get("model")), object_or_empty(process.get("train"))
    notes: list[str] = []
    name = section.get("name_or_path")
    said = train.get("dtype", "fp32")
    if not isinstance(said, str) or said not in DTYPES:
        notes.append(f"The job's train.dtype is {shown(said)}, which this pack does not compute in; it takes bfloat16.")
    model = JobModel(
        arch=arch_of(section),
        name_or_path=name if isinstance(name, str) else "",
        dtype=DTYPES.get(said, "bfloat16") if isinstance(said, str) else "bfloat16",
        extras=_extras(section),
        section=section,
    )
    facts = facts_of(model)
    if not model.name_or_path:
        notes.append("The job's model section has no name_or_path: nothing says which weights it was trained on.")
    if facts is None:
        notes.append(
            f"The job's model is {shown(model.arch)}, which this pack does not run. It runs: {', '.join(catalogue())}."
        )
    types = encoder_types(section, facts)
    encoder, undecided = encoder_type(types, trained_with)
    if undecided:
        notes.append(undecided)
    denoiser = denoiser_type(section, takes_adapter=takes_training_adapter(model))
    quantization: dict[Literal["denoiser", "encoder"], str] = {"denoiser": denoiser, "encoder": encoder}
    return replace(model, quantization=quantization, encoder_types=types if len(types) > 1 else ()), tuple(notes)


def wanted_model(model: JobModel) -> WantedModel:
    """What is to be loaded; the base has still to be found among the user's files."""
    facts = facts_of(model)
    problems = [] if facts else [f"This pack does not run {shown(model.arch)}."]
    choices: dict[Literal["denoiser", "encoder"], Quantization] = {}
    for role, said in model.quantization.items():
        choices[role] = said if said in TYPES else "none"  # pyright: ignore[reportArgumentType]
        if choices[role] != said and (role, said) != ("denoiser", NO_TYPE):
            problems.append(f"The job's {role} was quantised to {shown(said)}, which this pack does not have.")
    problems += unknown_kwargs(model, facts) if facts else []
    recovery = recovery_adapter(model, facts)
    problems += adapter_problems(model, recovery)
    options = RuntimeOptions(
        transformer_quantization=choices.get("denoiser", "none"),
        text_encoder_quantization=choices.get("encoder", "none"),
        own=Chosen.of({VAE_TILING.name: True} if facts and _tiles(model, facts) else {}),
    )
    return WantedModel(
        id=facts.id if facts else "",
        base=model.name_or_path,
        dtype=model.dtype,
        options=options,
        training_adapter=model.extras["assistant_lora_path"] if takes_training_adapter(model) else "",
        recovery_adapter=recovery,
        recovery_type=model.quantization.get("denoiser", "none") if recovery else "",
        elsewhere={key: model.extras[key] for key in (facts.job_files.parts if facts else ()) if key in model.extras},
        notes=_notes(model, facts) if facts else (),
        problems=tuple(problems),
    )


def _tiles(model: JobModel, facts: ModelFacts) -> bool:
    """Whether AI Toolkit cuts pictures into tiles for its autoencoder: of these models, with ``low_vram``."""
    return VAE_TILING in facts.runtime_options and bool(model.section.get("low_vram"))


def unmatched(model: JobModel) -> dict[str, str]:
    """Keys of the section that decide the picture and that ours may lack: neither loaded here nor ignored there."""
    facts = facts_of(model)
    # use_comfy_weights is only kept where it says that the repository's own weights are taken, as here
    known = (set(_FILES) - set(facts.job_files.missing)) | {"use_comfy_weights"} if facts else set()
    return {key: value for key, value in model.extras.items() if key not in known}


def _notes(model: JobModel, facts: ModelFacts) -> tuple[str, ...]:
    found, files, trains_with_adapter = [], facts.job_files, takes_training_adapter(model)
    for key in _FILES:
        if key not in model.extras or key in files.parts or (key == "assistant_lora_path" and trains_with_adapter):
            continue
        if key == "accuracy_recovery_adapter" and facts.recovery_adapters is not None:
            if not recovery_adapter(model, facts):
                found.append("The job names a recovery adapter, which AI Toolkit does not read without model.quantize.")
            continue
        said = f"The job sets model.{key} to {shown(model.extras[key], 200)}"
        if key in files.missing:
            found.append(f"{said}, which this pack does not have: the quantised weights differ.")
        elif key in files.stops or (key == "inference_lora_path" and not trains_with_adapter):
            found.append(f"{said}, at which AI Toolkit stops with {facts.title}: its pictures were rendered without.")
        else:
            found.append(f"{said}, which AI Toolkit does not read for {facts.title}: nothing is loaded of it.")
    return tuple(found)


def _extras(section: Mapping[str, Any]) -> dict[str, str]:
    found = {key: section[key] for key in _EXTRAS if section.get(key)}
    qtype = section.get("qtype")
    if isinstance(qtype, str) and "|" in qtype:
        found["accuracy_recovery_adapter"] = qtype.split("|", 1)[1]
    if found.get("extras_name_or_path") == section.get("name_or_path"):
        del found["extras_name_or_path"]
    if offloads(section):
        found["layer_offloading"] = True
    if object_or_empty(section.get("model_kwargs")).get("use_comfy_weights") is False:
        found["use_comfy_weights"] = False
    return {key: value if isinstance(value, str) else shown(value) for key, value in found.items()}
