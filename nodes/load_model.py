"""Choosing a model, where its weights come from, and how they are held."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..pipelines.checkpoint import Checkpoint, folder_markers, parts_in
from ..pipelines.errors import FileError, InputError
from ..pipelines.files import SUFFIXES
from ..pipelines.folders import check_name, resolve_name
from ..pipelines.handle import DTYPES, DType, PipelineHandle, RuntimeOptions
from ..pipelines.hub import fetch_part, fetch_tokenizer, open_repo
from ..pipelines.models import DEFAULT_MODEL, catalogue, find_model
from ..pipelines.models.facts import ModelFacts
from ..pipelines.sources.single_file import SingleFileSource, open_part, open_single_file
from ..pipelines.sources.source import Source
from .host import current_host

CATEGORY = "AITK"
DEFAULT = "default"
# where ComfyUI keeps single files of each part; whole checkpoints and transformers alone are both `weights`
_WEIGHTS = ("diffusion_models", "checkpoints")
_TEXT_ENCODERS = ("text_encoders",)
_VAES = ("vae",)
_DENSE = tuple(suffix for suffix in SUFFIXES if suffix != ".gguf")  # GGUF's blocks are for the transformer


class LoadAITKModel:
    """``model`` and ``weights`` to a pipeline handle. No weights are read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        host = current_host()
        folders = list(dict.fromkeys(name for marker in _markers() for name in host.model_folders("diffusers", marker)))
        return {
            "required": {
                "model": (
                    list(catalogue()),
                    {
                        "default": DEFAULT_MODEL,
                        "tooltip": "The model family, by AI Toolkit's name (arch in its job).",
                    },
                ),
                "weights": (
                    list(dict.fromkeys([DEFAULT, *folders, *_files(_WEIGHTS, tuple(SUFFIXES))])),
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the model's own Hugging Face repository (or repo_id), from the cache or "
                        "downloaded; for FLUX.2 the text encoder is from where AI Toolkit takes it. Others: model "
                        "folders in ComfyUI's 'diffusers' folder, in diffusers' or AI Toolkit's layout, and single "
                        "files in 'diffusion_models' (the transformer alone; also GGUF and scaled float8) and "
                        "'checkpoints' (all in one).",
                    },
                ),
                "dtype": (
                    ["auto", *DTYPES],
                    {
                        "default": "auto",
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
                        "tooltip": "Another Hugging Face repository of this model, as owner/name; only with weights = "
                        "default. Log in with 'hf auth login' or HF_TOKEN where it is gated.",
                    },
                ),
                "options": (
                    "AITK_OPTIONS",
                    {"tooltip": "From AITK Runtime Options: quantisation, attention and memory."},
                ),
                "text_encoder": (
                    [DEFAULT, *_files(_TEXT_ENCODERS, _DENSE)],
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the one that weights holds. Others: a file in 'text_encoders', with its "
                        "tokenizer inside (Qwen's comes from the hub); needed where weights is a transformer alone.",
                    },
                ),
                "vae": (
                    [DEFAULT, *_files(_VAES, _DENSE)],
                    {
                        "default": DEFAULT,
                        "tooltip": "default: the one that weights holds. Others: a file in 'vae' (ae.safetensors for "
                        "Lumina Image 2.0 and OmniGen2, flux2-vae.safetensors for FLUX.2); needed where weights is a "
                        "transformer alone.",
                    },
                ),
            },
        }

    RETURN_TYPES = ("AITK_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("For Apply AITK LoRA and AITK Sampler. It holds no weights: they load when the sampler runs.",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Chooses a model that AI Toolkit trains and where its weights come from."
    SEARCH_ALIASES = [
        "ai toolkit", "ostris", "lumina", "flux2", "flux.2", "klein", "omnigen2", "load diffusers model",
        "model loader",
    ]  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str | None = None) -> bool | str:
        """Refuses a name that is not there or not allowed when the prompt is queued; a linked name waits.

        Of ``weights`` alone: ComfyUI shows the answer once for each input that is named here, and checks the others
        against their lists by itself.
        """
        return weights in (None, DEFAULT) or why_refused(weights, ("diffusers", *_WEIGHTS), "weights") or True

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
        facts = find_model(model or DEFAULT_MODEL)
        # None: linked, and not known yet
        found = _given(facts, text_encoder or DEFAULT, vae or DEFAULT)
        if weights not in (None, DEFAULT):
            found = _weights(facts, weights, found) | found
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
    ) -> tuple[PipelineHandle]:
        facts = find_model(model)
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown. Choose auto, {', '.join(DTYPES)}.")
        repo_id = repo_id.strip()
        given = {part: _with_tokenizer(source, facts) for part, source in _given(facts, text_encoder, vae).items()}
        if weights == DEFAULT:
            found = open_repo(repo_id or facts.repo_id, facts, given)
            name = found["transformer"].name
        elif repo_id:
            raise InputError(f"repo_id {repo_id!r} needs weights = default, not {weights!r}. Change one of them.")
        else:
            name, found = check_name(weights, "weights").as_posix(), _weights(facts, weights, given)
            if resolve_name(weights, _roots(("diffusers", *_WEIGHTS)), "weights").is_dir():
                # what a folder of AI Toolkit's layout lacks comes from where AI Toolkit takes it
                found |= {part: fetch_part(part, facts) for part in facts.parts if part not in (*found, *given)}
        found |= given
        checkpoint = Checkpoint.assemble(name, found, facts)
        _check_family(facts, checkpoint)
        run_dtype = "bfloat16" if dtype == "auto" else cast(DType, dtype)
        return (PipelineHandle(facts.id, checkpoint, run_dtype, options or RuntimeOptions()),)


def _check_family(facts: ModelFacts, checkpoint: Checkpoint) -> None:
    found = checkpoint.config("transformer").get("_class_name")
    if found != facts.transformer_class:
        fits = [other.id for other in catalogue().values() if other.transformer_class == found]
        hint = f"Set model to {fits[0]}." if fits else f"Choose weights that hold {facts.title}."
        raise FileError(
            f"{checkpoint.name!r} holds a {found}, and {facts.title} is a {facts.transformer_class}. {hint}"
        )


def _markers() -> list[str]:
    return list(dict.fromkeys(marker for facts in catalogue().values() for marker in folder_markers(facts)))


def _files(kinds: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for kind in kinds for name in current_host().model_files(kind, suffixes)]


def _weights(facts: ModelFacts, weights: str, given: Collection[str] = ()) -> dict[str, Source]:
    """Part -> source of what ``weights`` names: a model folder (without ``given`` parts), or a file of parts."""
    host = current_host()
    name = check_name(weights, "weights").as_posix()
    path = resolve_name(weights, _roots(("diffusers", *_WEIGHTS)), "weights")
    if path.is_dir():
        return parts_in(path, name, facts, given)
    places = [kind for kind in _WEIGHTS if any((root / name).is_file() for root in host.model_roots(kind))]
    if len(places) > 1:
        raise FileError(f"{name!r} is in {' and in '.join(places)}: rename one of the two, so that it is clear which.")
    found = open_single_file(path, name, facts)
    if "transformer" not in found:
        raise FileError(
            f"{name!r} holds the {' and the '.join(found)} of {facts.title}, and weights must hold the transformer. "
            "Choose it as " + " or ".join(found) + "."
        )
    return dict(found)


def _given(facts: ModelFacts, text_encoder: str, vae: str) -> dict[str, Source]:
    """Part -> source, for those that have a file of their own."""
    chosen = {"text_encoder": (text_encoder, _TEXT_ENCODERS), "vae": (vae, _VAES)}
    return {part: _single(facts, part, file, kinds) for part, (file, kinds) in chosen.items() if file != DEFAULT}


def _single(facts: ModelFacts, part: str, name: str, kinds: Sequence[str]) -> Source:
    """One part from a single file of its own."""
    return open_part(resolve_name(name, _roots(kinds), part), check_name(name, part).as_posix(), part, facts)


def _with_tokenizer(source: Source, facts: ModelFacts) -> Source:
    """The source itself, or with the tokenizer of its repository where its file holds none."""
    needs = facts.parts[source.component].tokenizer is not None
    if needs and isinstance(source, SingleFileSource) and source.tokenizer() is None:
        return replace(source, tokenizer_folder=fetch_tokenizer(source.component, facts))
    return source


def _roots(kinds: Sequence[str]) -> list[Path]:
    return [root for kind in kinds for root in current_host().model_roots(kind)]


def check_pipeline(value: object) -> None:
    """Raises InputError where something else than a pipeline is connected, which a hand-written prompt can do."""
    if not isinstance(value, PipelineHandle):
        raise InputError("pipeline is no AITK_PIPELINE. Connect Load AITK Model or Apply AITK LoRA.")


def why_refused(name: str, kinds: Sequence[str], what: str) -> str:
    """The message of a name that cannot be resolved below the folders of model kinds; empty for one that can."""
    try:
        resolve_name(name, _roots(kinds), what)
    except FileError as error:
        return str(error)
    return ""
