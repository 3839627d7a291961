"""Choosing a model, where its weights come from, and how they are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from ..pipelines.errors import AITKError, FileError, InputError
from ..pipelines.files import SUFFIXES
from ..pipelines.handle import Lease, PipelineHandle
from ..pipelines.models import DEFAULT_MODEL, catalogue, find_model
from ..pipelines.options import DTYPES, DType, RuntimeOptions
from ..pipelines.weights.choice import DEFAULT, FOLDERS, PART_FILES, WEIGHT_FILES, WEIGHTS, Choice
from ..pipelines.words import cut, shown
from .host import current_host
from .observer import NodeObserver
from .shared import CATEGORY, check_texts, roots, search_words, tooltip, why_refused

if TYPE_CHECKING:
    from ..pipelines.models.facts import ModelFacts
    from ..pipelines.observer import Observer
    from ..pipelines.weights.checkpoint import Checkpoint
    from ..pipelines.weights.source import Source

AUTO = "auto"
_DENSE = tuple(suffix for suffix in SUFFIXES if suffix != ".gguf")  # nobody packs an autoencoder


class LoadAITKModel:
    """``model`` and ``weights`` to a pipeline handle. No weights are read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (
                    # auto is the last: it came later
                    [*catalogue(), AUTO],
                    {
                        "default": DEFAULT_MODEL,
                        "tooltip": "The model family, by AI Toolkit's name (arch in its job). auto: told from the file "
                        "or folder that weights names.",
                    },
                ),
                "weights": (
                    weights_names(),
                    {"default": DEFAULT}
                    | tooltip(
                        "LoadAITKModel.weights",
                        "default: the model's own Hugging Face repository (or repo_id), from the cache or downloaded. "
                        "Others: model folders in ComfyUI's 'diffusers' folder, in diffusers' or AI Toolkit's layout, "
                        "and single files in 'diffusion_models' (the transformer alone; also GGUF and quantised files) "
                        "and 'checkpoints' (all in one).",
                    ),
                ),
                "dtype": (
                    ["auto", *DTYPES],
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "What the model computes in. auto is bfloat16, as in AI Toolkit's jobs; another one "
                        "makes another picture.",
                    },
                ),
            },
            "optional": {
                "repo_id": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Another Hugging Face repository of this model, as owner/name; only with weights = "
                        "default. Log in with 'hf auth login' or HF_TOKEN where it is gated.",
                    },
                ),
                "options": (
                    "AITK_OPTIONS",
                    {"tooltip": "From AITK Runtime Options: quantisation, attention and memory."},
                ),
                "text_encoder": (
                    [DEFAULT, *_files(PART_FILES["encoder"], tuple(SUFFIXES))],
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the one that weights holds. Others: a file in 'text_encoders', with its "
                        "tokenizer inside or from the hub; also GGUF; needed where weights is a transformer alone.",
                    },
                ),
                "vae": (
                    [DEFAULT, *_files(PART_FILES["autoencoder"], _DENSE)],
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the one that weights holds. Others: a file in 'vae' "
                        f"({_comfy_files()}); needed where weights is a transformer alone.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("AITK_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("For Apply AITK LoRA and AITK Sampler. It holds no weights: they load when the sampler runs.",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Chooses a model that AI Toolkit trains and where its weights come from."
    SEARCH_ALIASES = search_words("load model", "model loader", "checkpoint loader", "load diffusers model", "gguf")

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str | None = None) -> bool | str:
        """Refuses a name that is not there or not allowed when the prompt is queued; a linked name waits.

        Of ``weights`` alone: ComfyUI shows the answer once for each input that is named here, and checks the others
        against their lists by itself.
        """
        return weights in (None, DEFAULT) or why_refused(weights, WEIGHTS, "weights") or True

    @classmethod
    def IS_CHANGED(
        cls,
        model: str | None,
        weights: str | None = None,
        text_encoder: str | None = None,
        vae: str | None = None,
        **_: Any,
    ) -> str:
        """A file that was replaced is another model."""
        # here and below: the readers of files are imported when a graph runs, not with the pack
        from ..pipelines.weights.choose import local_sources

        # None: linked, and not known yet
        choice = _choice(weights or DEFAULT, text_encoder or DEFAULT, vae or DEFAULT)
        found = local_sources(_facts(model or DEFAULT_MODEL, choice).files, choice, roots)
        stamps = [stamp for source in found.values() for stamp in source.files]
        return str(hash(tuple(stamps))) if stamps else ""

    def load(
        self,
        model: str,
        weights: str,
        dtype: str,
        repo_id: str = "",
        options: RuntimeOptions | None = None,
        text_encoder: str = DEFAULT,
        vae: str = DEFAULT,
        unique_id: str | None = None,
    ) -> tuple[PipelineHandle]:
        texts = {"model": model, "weights": weights, "dtype": dtype, "repo_id": repo_id}
        check_texts(texts | {"text_encoder": text_encoder, "vae": vae})
        if options is not None and not isinstance(options, RuntimeOptions):
            raise InputError("options is no AITK_OPTIONS. Connect AITK Runtime Options.")
        choice = _choice(weights, text_encoder, vae, repo_id)
        facts = _facts(model, choice)
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"dtype {shown(dtype)} is unknown. Choose auto, {', '.join(DTYPES)}.")
        host = current_host()
        with NodeObserver(host, unique_id, "opening the files") as observer:
            checkpoint = chosen_checkpoint(facts, choice, observer)
        if observer.spoke or model == AUTO:
            host.show_text(unique_id, f"{facts.title}: {checkpoint.name}" if model == AUTO else checkpoint.name)
        run_dtype = "bfloat16" if dtype == "auto" else cast("DType", dtype)
        return (PipelineHandle(facts.id, checkpoint, run_dtype, options or RuntimeOptions(), lease=Lease()),)


def _choice(weights: str, text_encoder: str, vae: str, repo_id: str = "") -> Choice:
    return Choice(weights, repo_id, {"encoder": text_encoder, "autoencoder": vae})


def _facts(model: str, choice: Choice) -> ModelFacts:
    """The catalogue's entry of a name, or of what the weights tell."""
    if model != AUTO:
        return find_model(model)
    from ..pipelines.models.telling import model_of

    return model_of(choice.weights, roots)


def chosen_checkpoint(
    facts: ModelFacts, choice: Choice, observer: Observer, elsewhere: Mapping[str, Source] | None = None
) -> Checkpoint:
    """The checkpoint of a choice; where it is none of this model, the error says of which model it is one.

    Args:
        facts: the model's.
        choice: the names.
        observer: told of downloads.
        elsewhere: part -> source of those that the choice is not asked for.
    """
    from ..pipelines.weights.choose import choose, local_sources

    try:
        if choice.weights != DEFAULT:
            # first: what another model's folder lacks must not be downloaded
            main = local_sources(facts.files, choice, roots).get(facts.files.main)
            if main is not None:
                _check_family(facts, main.name, main.config())
        checkpoint = choose(facts.files, choice, roots, observer, elsewhere=elsewhere or {})
        _check_family(facts, checkpoint.name, checkpoint.config(facts.files.main))
        return checkpoint
    except OSError as error:
        raise FileError(f"{shown(choice.weights)} cannot be read: {error.strerror or type(error).__name__}.") from error
    except FileError as error:
        fits = [] if "Set model to" in str(error) else _models_of(choice, facts)
        if not fits:
            raise
        titles, ids = (" or ".join(names) for names in zip(*((m.title, m.id) for m in fits), strict=True))
        raise FileError(f"{error} It holds {titles}: set model to {ids}.") from error


def _models_of(choice: Choice, but: ModelFacts) -> list[ModelFacts]:
    """The other models that the chosen weights are of, as far as their configuration tells; nothing is fetched."""
    from ..pipelines.weights.choose import local_sources

    found = []
    for other in catalogue().values():
        try:
            main = None if other is but else local_sources(other.files, choice, roots).get(other.files.main)
            fits = main is not None and main.config().get("_class_name") == other.files.main_class
        except (AITKError, OSError):
            continue
        if fits:
            found.append(other)
    return found


def _check_family(facts: ModelFacts, name: str, config: Mapping[str, Any]) -> None:
    files = facts.files
    found = config.get("_class_name")
    if found != files.main_class:
        fits = [other.id for other in catalogue().values() if other.files.main_class == found]
        hint = f"Set model to {' or '.join(fits)}." if fits else f"Choose weights that hold {facts.title}."
        raise FileError(f"{shown(name)} holds a {cut(str(found))}, and {facts.title} is a {files.main_class}. {hint}")


def weights_names() -> list[str]:
    """What ``weights`` can be: the default, model folders, denoisers alone, and whole checkpoints; each by name."""
    host = current_host()
    folders = {name for marker in _markers() for kind in FOLDERS for name in host.model_folders(kind, marker)}
    files = [sorted(_files((kind,), tuple(SUFFIXES)), key=str.casefold) for kind in WEIGHT_FILES]
    return list(dict.fromkeys([DEFAULT, *sorted(folders, key=str.casefold), *chain.from_iterable(files)]))


def _markers() -> list[str]:
    from ..pipelines.weights.checkpoint import folder_markers

    return list(dict.fromkeys(marker for facts in catalogue().values() for marker in folder_markers(facts.files)))


def _files(kinds: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for kind in kinds for name in current_host().model_files(kind, suffixes)]


def _comfy_files() -> str:
    """What ComfyUI's users call the autoencoders, and for which models: the first of each that have one transformer."""
    found: dict[str, dict[str, str]] = {}
    for facts in catalogue().values():
        for files in facts.files.parts.values():
            if files.role == "autoencoder" and files.comfy_file:
                found.setdefault(files.comfy_file, {}).setdefault(facts.files.main_class, facts.title)
    return ", ".join(f"{file} for {' and '.join(titles.values())}" for file, titles in found.items())
