"""A job's model section: what was trained, and what has to be loaded to render as the trainer did.

Sources: AI Toolkit config_modules.py ModelConfig, train_tools.py get_torch_dtype (27a03a91).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from packaging.version import InvalidVersion, Version

from ..models import catalogue
from ..models.option import VAE_TILING
from ..models.recipe import TRAINER_PREVIEW
from ..options import RECOVERY_TYPES, Chosen, Quantization, RuntimeOptions
from ..words import shown
from .job import JobModel

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..options import DType, OptionValue

# AI Toolkit's names of dtypes
DTYPES: dict[str, DType] = {
    "float": "float32", "fp32": "float32", "single": "float32", "float32": "float32",
    "fp16": "float16", "half": "float16", "float16": "float16",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
# keys of the section that change what is loaded or how it computes
_EXTRAS = (
    "extras_name_or_path", "te_name_or_path", "vae_path", "unet_path", "refiner_name_or_path", "lora_path",
    "assistant_lora_path", "inference_lora_path", "unconditional_lora_path", "accuracy_recovery_adapter",
    "layer_offloading", "vae_dtype", "te_dtype", "compile", "block_compile",
)  # fmt: skip
# of these, those that name files
_FILES = (
    "extras_name_or_path", "te_name_or_path", "vae_path", "unet_path", "refiner_name_or_path", "lora_path",
    "assistant_lora_path", "inference_lora_path", "unconditional_lora_path", "accuracy_recovery_adapter",
)  # fmt: skip
# the old way to name an architecture, `is_xl: true`; every other one is `is_` and its name
_OLD_NAMES = {"is_v2": "sd2", "is_v3": "sd3", "is_xl": "sdxl"}
# settings of a kind of model that begin like an architecture
_NO_ARCHITECTURE = ("is_v_pred",)
_RENAMED = {"flex1": "flux"}
_SAME_TYPES = {"qfloat8_e4m3fn": "qfloat8"}  # two of quanto's names
# all of this pack's but its own
_TYPES = tuple(one for one in get_args(Quantization) if one != "fp8_e4m3fn")
# the type whose every layer AI Toolkit refuses: the weights stay, and no LoRA is merged into them (uintx_quant.py)
NO_TYPE = "uint8"
_NO_ARCH = "sd1"  # what AI Toolkit takes a section for that says nothing
# AI Toolkit's loaders changed between these: the first was seen before, the second after
OLD_LOADERS, NEW_LOADERS = Version("0.12.26"), Version("0.13.5")


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
    section, train = _object(process.get("model")), _object(process.get("train"))
    notes: list[str] = []
    name = section.get("name_or_path")
    said = train.get("dtype", "fp32")
    if not isinstance(said, str) or said not in DTYPES:
        notes.append(f"The job's train.dtype is {shown(said)}, which this pack does not compute in; it takes bfloat16.")
    model = JobModel(
        arch=_arch(section),
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
    types = _encoder_types(section, facts)
    encoder, undecided = _encoder_type(types, trained_with)
    if undecided:
        notes.append(undecided)
    denoiser = _type(section, "quantize", "qtype")
    if denoiser == "qfloat8" and section.get("qtype", denoiser) == denoiser and _takes_adapter(model):
        denoiser = "float8"  # AI Toolkit z_image.py load_model
    quantization: dict[Literal["denoiser", "encoder"], str] = {"denoiser": denoiser, "encoder": encoder}
    return replace(model, quantization=quantization, encoder_types=types if len(types) > 1 else ()), tuple(notes)


def facts_of(model: JobModel) -> ModelFacts | None:
    """The catalogue's entry of a job's model, or None.

    AI Toolkit drops what follows the colon of an arch, so a job may say ``zimage`` of the weights of ``zimage:turbo``:
    an entry whose repository is the job's own comes first. What tells entries of one repository from each other is in
    the job's model_kwargs.
    """
    kwargs = _object(model.section.get("model_kwargs"))
    family = [
        facts
        for facts in _of_arch(model.arch)
        if all(bool(kwargs.get(key, False)) == on for key, on in facts.job_files.signs.items())
    ]
    for facts in family:
        if facts.files.repository == model.name_or_path:
            return facts
    of_name = {facts.id: facts for facts in family}
    # the name may be that of an entry whose signs the job does not have
    return of_name.get(model.arch, of_name.get(_bare(model.arch), next(iter(family), None)))


def options_of(model: JobModel) -> Chosen:
    """What the job's model_kwargs say of the options that the model's recipes read."""
    facts = facts_of(model)
    if facts is None:
        return Chosen()
    kwargs, read = _object(model.section.get("model_kwargs")), facts.recipes[TRAINER_PREVIEW].options
    found: dict[str, OptionValue] = {}
    for key, default in facts.job_files.kwargs.items():
        value = kwargs.get(key, default)
        if key not in read or value is None:
            continue
        if isinstance(default, bool):
            found[key] = bool(value)
        elif isinstance(value, int | float):
            found[key] = float(value)
    return Chosen.of(found)


def wanted_model(model: JobModel) -> WantedModel:
    """What is to be loaded; the base has still to be found among the user's files."""
    facts = facts_of(model)
    problems = [] if facts else [f"This pack does not run {shown(model.arch)}."]
    choices: dict[Literal["denoiser", "encoder"], Quantization] = {}
    for role, said in model.quantization.items():
        choices[role] = said if said in _TYPES else "none"  # pyright: ignore[reportArgumentType]
        if choices[role] != said and (role, said) != ("denoiser", NO_TYPE):
            problems.append(f"The job's {role} was quantised to {shown(said)}, which this pack does not have.")
    problems += _unknown_kwargs(model, facts) if facts else []
    recovery = _recovery_adapter(model, facts)
    problems += _adapter_problems(model, recovery)
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
        training_adapter=model.extras["assistant_lora_path"] if _takes_adapter(model) else "",
        recovery_adapter=recovery,
        recovery_type=model.quantization.get("denoiser", "none") if recovery else "",
        elsewhere={key: model.extras[key] for key in (facts.job_files.parts if facts else ()) if key in model.extras},
        notes=_notes(model, facts) if facts else (),
        problems=tuple(problems),
    )


def _unknown_kwargs(model: JobModel, facts: ModelFacts) -> list[str]:
    """Sentences about model_kwargs that change the picture and that this pack does not have."""
    kwargs, known = _object(model.section.get("model_kwargs")), options_of(model)
    return [
        f"The job sets model_kwargs.{key} to {shown(kwargs[key], 200)}, which this pack lacks for {facts.title}."
        for key, default in facts.job_files.kwargs.items()
        if kwargs.get(key) is not None and kwargs[key] != default and key not in known
    ]


def _adapter_problems(model: JobModel, recovery: str) -> Iterator[str]:
    """At what AI Toolkit stops, so that a job's pictures were rendered otherwise; a sentence each."""
    held = model.quantization.get("denoiser", "none")
    if recovery and held in _TYPES and held not in RECOVERY_TYPES:
        yield (
            f"The job's recovery adapter {shown(recovery, 200)} is on layers in {shown(held)}, a type at which AI "
            f"Toolkit stops; it takes {', '.join(RECOVERY_TYPES)}."
        )
    if "accuracy_recovery_adapter" in model.extras and "assistant_lora_path" in model.extras:
        yield (
            "The job sets both a recovery adapter (model.qtype) and model.assistant_lora_path, at which AI Toolkit "
            "stops. Take the one out that its pictures were rendered without."
        )
    if "|" in recovery:
        yield f"The job's model.qtype has two '|', at which AI Toolkit stops: {shown(recovery, 200)}."


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
    found, files = [], facts.job_files
    for key in _FILES:
        if key not in model.extras or key in files.parts or (key == "assistant_lora_path" and _takes_adapter(model)):
            continue
        if key == "accuracy_recovery_adapter" and facts.recovery_adapters is not None:
            if not _recovery_adapter(model, facts):
                found.append("The job names a recovery adapter, which AI Toolkit does not read without model.quantize.")
            continue
        said = f"The job sets model.{key} to {shown(model.extras[key], 200)}"
        if key in files.missing:
            found.append(f"{said}, which this pack does not have: the quantised weights differ.")
        elif key in files.stops or (key == "inference_lora_path" and not _takes_adapter(model)):
            found.append(f"{said}, at which AI Toolkit stops with {facts.title}: its pictures were rendered without.")
        else:
            found.append(f"{said}, which AI Toolkit does not read for {facts.title}: nothing is loaded of it.")
    return tuple(found)


def version_of(text: str) -> Version | None:
    """A version of AI Toolkit as a LoRA has it, or None where it is none."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


def by_old_loaders(trained_with: str) -> bool:
    """Whether a version of AI Toolkit is known to load weights as it did before 0.13."""
    version = version_of(trained_with)
    return version is not None and version <= OLD_LOADERS


def _bare(arch: str) -> str:
    return arch.split(":", 1)[0]


def _of_arch(arch: str) -> list[ModelFacts]:
    """The entries of an arch, whatever its tag."""
    return [facts for facts in catalogue().values() if _bare(facts.id) == _bare(arch)]


def _takes_adapter(model: JobModel) -> bool:
    """Whether a training adapter was merged under the model: of other models AI Toolkit reads none."""
    return "assistant_lora_path" in model.extras and any(facts.training_adapter for facts in _of_arch(model.arch))


def _recovery_adapter(model: JobModel, facts: ModelFacts | None) -> str:
    """The recovery adapter that AI Toolkit quantises a model under; empty where it reads none."""
    read = facts is not None and facts.recovery_adapters is not None and bool(model.section.get("quantize"))
    return model.extras.get("accuracy_recovery_adapter", "") if read else ""


def _arch(section: Mapping[str, Any]) -> str:
    said = section.get("arch")
    if isinstance(said, str) and said:
        bare, colon, tag = said.partition(":")
        return _RENAMED.get(bare, bare) + colon + tag
    # AI Toolkit asks in an order of its own, which no job with one of them depends on
    old = [key for key in section if key.startswith("is_") and section[key] and key not in _NO_ARCHITECTURE]
    return _OLD_NAMES.get(old[0], old[0].removeprefix("is_")) if old else _NO_ARCH


def _type(section: Mapping[str, Any], switch: str, key: str) -> str:
    """A part's type: ``none`` where its switch is off."""
    if not section.get(switch, section.get("quantize", False)):
        return "none"
    said = section.get(key, "qfloat8")
    found = said.split("|", 1)[0] if isinstance(said, str) else shown(said)
    found = _SAME_TYPES.get(found, found)
    # quanto's weights cannot be moved a layer at a time: AI Toolkit takes torchao's type, where it finds this very text
    return "float8" if said == "qfloat8" and _offloads(section) else found


def _encoder_types(section: Mapping[str, Any], facts: ModelFacts | None) -> tuple[str, ...]:
    """The text encoder's type; of a model whose key changed, that of the old loaders and that of the new ones."""
    own, shared = _type(section, "quantize_te", "qtype_te"), _type(section, "quantize_te", "qtype")
    rule = facts.encoder_qtype if facts else "qtype_te"
    if rule == "qtype_te since 0.13":
        return (own,) if own == shared else (shared, own)
    return (shared,) if rule == "qtype" else (own,)


def _encoder_type(types: tuple[str, ...], trained_with: str) -> tuple[str, str]:
    """The text encoder's type at a version, and a sentence where nothing tells it."""
    version = version_of(trained_with)
    old, new = types[0], types[-1]
    if by_old_loaders(trained_with):
        return old, ""
    if old == new or (version is not None and version >= NEW_LOADERS):
        return new, ""
    return new, (
        f"AI Toolkit up to {OLD_LOADERS} quantised this model's text encoder to {shown(old)}, from {NEW_LOADERS} "
        f"on to {shown(new)}. Nothing tells which rendered these previews; {shown(new)} is taken."
    )


def _extras(section: Mapping[str, Any]) -> dict[str, str]:
    found = {key: section[key] for key in _EXTRAS if section.get(key)}
    qtype = section.get("qtype")
    if isinstance(qtype, str) and "|" in qtype:
        found["accuracy_recovery_adapter"] = qtype.split("|", 1)[1]
    if found.get("extras_name_or_path") == section.get("name_or_path"):
        del found["extras_name_or_path"]
    if _offloads(section):
        found["layer_offloading"] = True
    if _object(section.get("model_kwargs")).get("use_comfy_weights") is False:
        found["use_comfy_weights"] = False
    return {key: value if isinstance(value, str) else shown(value) for key, value in found.items()}


def _offloads(section: Mapping[str, Any]) -> bool:
    return bool(section.get("layer_offloading", section.get("auto_memory", False)))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
