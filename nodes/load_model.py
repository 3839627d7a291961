"""Choosing a model, where its weights come from, and how they are held."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..pipelines.checkpoint import MODEL_INDEX, Checkpoint
from ..pipelines.errors import FileError, InputError
from ..pipelines.folders import check_name, resolve_name
from ..pipelines.handle import (
    DTYPES,
    QUANTIZATION_CHOICES,
    TEXT_ENCODER_ATTENTIONS,
    DType,
    PipelineHandle,
    QuantizationChoice,
    RuntimeOptions,
    TextEncoderAttention,
)
from ..pipelines.hub import open_repo
from ..pipelines.models import DEFAULT_MODEL, catalogue, find_model
from ..pipelines.models.facts import ModelFacts
from .host import current_host

CATEGORY = "AITK"
DEFAULT_WEIGHTS = "default"


class LoadAITKModel:
    """``model`` and ``weights`` to a pipeline handle. No weights are read here."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folders = current_host().model_folders("diffusers", MODEL_INDEX)
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
                    [DEFAULT_WEIGHTS, *folders],
                    {
                        "default": DEFAULT_WEIGHTS,
                        "tooltip": "default: the model's own Hugging Face repository (or repo_id), from the cache or "
                        "downloaded. Others: model folders in ComfyUI's 'diffusers' folder.",
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
                    {"tooltip": "From AITK Runtime Options: quantisation and the text encoder's attention."},
                ),
            },
        }

    RETURN_TYPES = ("AITK_PIPELINE",)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("For Apply AITK LoRA and AITK Sampler. It holds no weights: they load when the sampler runs.",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Chooses a model that AI Toolkit trains and where its weights come from."
    SEARCH_ALIASES = ["ai toolkit", "ostris", "lumina", "load diffusers model", "model loader"]

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str | None = None) -> bool | str:
        """Refuses a folder that is not there or not allowed when the prompt is queued; a linked name waits."""
        return weights in (None, DEFAULT_WEIGHTS) or why_refused(weights, "diffusers", "model folder") or True

    @classmethod
    def IS_CHANGED(cls, model: str | None, weights: str | None = None, **_: Any) -> str:
        """A folder whose files were replaced is another model."""
        if weights in (None, DEFAULT_WEIGHTS):
            # None: linked, and not known yet
            return ""
        return str(hash(_folder(find_model(model or DEFAULT_MODEL), weights).files))

    def load(
        self, model: str, weights: str, dtype: str, repo_id: str = "", options: RuntimeOptions | None = None
    ) -> tuple[PipelineHandle]:
        facts = find_model(model)
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown. Choose auto, {', '.join(DTYPES)}.")
        repo_id = repo_id.strip()
        if weights == DEFAULT_WEIGHTS:
            checkpoint = open_repo(repo_id or facts.repo_id, facts.components)
        elif repo_id:
            raise InputError(f"repo_id {repo_id!r} needs weights = default, not {weights!r}. Change one of them.")
        else:
            checkpoint = _folder(facts, weights)
        found = checkpoint.config("transformer").get("_class_name")
        if found != facts.transformer_class:
            fits = [other.id for other in catalogue().values() if other.transformer_class == found]
            hint = f"Set model to {fits[0]}." if fits else f"Choose weights that hold {facts.title}."
            raise FileError(
                f"{checkpoint.name!r} holds a {found}, and {facts.title} is a {facts.transformer_class}. {hint}"
            )
        run_dtype = "bfloat16" if dtype == "auto" else cast(DType, dtype)
        return (PipelineHandle(facts.id, checkpoint, run_dtype, options or RuntimeOptions()),)


def check_pipeline(value: object) -> None:
    """Raises InputError where something else than a pipeline is connected, which a hand-written prompt can do."""
    if not isinstance(value, PipelineHandle):
        raise InputError("pipeline is no AITK_PIPELINE. Connect Load AITK Model or Apply AITK LoRA.")


def why_refused(name: str, kind: str, what: str) -> str:
    """The message of a name that cannot be resolved below a model kind's folders; empty for one that can."""
    try:
        resolve_name(name, current_host().model_roots(kind), what)
    except FileError as error:
        return str(error)
    return ""


def _folder(facts: ModelFacts, weights: str) -> Checkpoint:
    path: Path = resolve_name(weights, current_host().model_roots("diffusers"), "model folder")
    return Checkpoint.open(path, check_name(weights, "model folder").as_posix(), facts.components)


class AITKRuntimeOptions:
    """How weights are held and run."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        quantization = (
            "{} model default: what the model's page says (Lumina Image 2.0: none). qfloat8 and qint8: optimum-quanto, "
            "as AI Toolkit's {} does. Saves memory and changes the picture."
        )
        return {
            "required": {
                "transformer_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        "tooltip": quantization.format("How the transformer's weights are held.", "'quantize'"),
                    },
                ),
                "text_encoder_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        "tooltip": quantization.format("How the text encoder's weights are held.", "'quantize_te'")
                        + " AI Toolkit's own interface sets it to qfloat8: choose that to match its previews.",
                    },
                ),
                "text_encoder_attention": (
                    list(TEXT_ENCODER_ATTENTIONS),
                    {
                        "default": "auto",
                        "tooltip": "Soft-capping of Gemma2's attention logits. auto: off, as under the versions that "
                        "AI Toolkit pins. softcap: on, as the newest transformers does by itself.",
                    },
                ),
            }
        }

    RETURN_TYPES = ("AITK_OPTIONS",)
    RETURN_NAMES = ("options",)
    OUTPUT_TOOLTIPS = ("For Load AITK Model.",)
    FUNCTION = "make"
    CATEGORY = CATEGORY
    DESCRIPTION = "Quantisation of each part and the text encoder's attention variant."
    SEARCH_ALIASES = ["quantize", "quanto", "qfloat8", "qint8", "fp8", "low vram", "softcap", "gemma"]

    def make(
        self, transformer_quantization: str, text_encoder_quantization: str, text_encoder_attention: str
    ) -> tuple[RuntimeOptions]:
        for name, value, choices in (
            ("transformer_quantization", transformer_quantization, QUANTIZATION_CHOICES),
            ("text_encoder_quantization", text_encoder_quantization, QUANTIZATION_CHOICES),
            ("text_encoder_attention", text_encoder_attention, TEXT_ENCODER_ATTENTIONS),
        ):
            if value not in choices:
                raise InputError(f"{name} {value!r} is unknown. Choose one of: {', '.join(choices)}.")
        return (
            RuntimeOptions(
                cast(QuantizationChoice, transformer_quantization),
                cast(QuantizationChoice, text_encoder_quantization),
                cast(TextEncoderAttention, text_encoder_attention),
            ),
        )
