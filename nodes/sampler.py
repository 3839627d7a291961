"""The sampler node: one run (``pipelines/run``) with the host's progress, previews and interruption."""

from __future__ import annotations

import json
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from ..pipelines.handle import ControlImages, PipelineHandle
from ..pipelines.machine.ram import total_ram
from ..pipelines.models import DEFAULT_MODEL, catalogue, find_model
from ..pipelines.models.recipe import SUMMARIES, TRAINER_PREVIEW
from ..pipelines.options import Chosen
from ..pipelines.run.request import MAX_BATCH, MAX_STEPS, MIN_DENOISE, SampleRequest, check_seed
from .host import current_host
from .observer import NodeObserver
from .save_image import REPORT_KEY
from .shared import (
    CATEGORY,
    check_pipeline,
    latent_samples,
    recipe_names,
    search_words,
    takes_control_images,
    tooltip,
)

if TYPE_CHECKING:
    import torch

    from ..pipelines.engine.engine import Engine
    from ..pipelines.machine.plan import DeviceMemory
    from ..pipelines.machine.residence import Residence

MAX_WIDGET_SEED = 2**53  # the largest whole number that the editor, a JavaScript program, holds exactly
_SIDE_STEP = 16  # every size that it gives is rendered as it is by all recipes but those that floor to 32
_MAX_SIDE = 16384  # ComfyUI's own limit of a side; the model's, which the run checks, is lower


class _HostMachine:
    """The machine that the host in use is on; see :class:`..pipelines.machine.machine.Machine`."""

    def device(self) -> str:
        return current_host().device()

    def admit(self, guest: Residence, beside: int) -> None:
        current_host().admit(guest, beside)

    def make_room(self, size: float) -> None:
        current_host().make_room(size)

    def device_memory(self) -> DeviceMemory | None:
        return current_host().device_memory()

    def ram(self) -> int:
        return total_ram()

    def processes(self) -> int:
        return current_host().processes()


class _OneEngine:
    """The one engine of this process: every sampler node shares its weights, whichever thread it is in."""

    def __init__(self) -> None:
        self._made: Engine | None = None
        self._making = Lock()

    def __call__(self) -> Engine:
        # here and below: torch and diffusers are imported by the first run, not by the pack
        from ..pipelines.engine.engine import Engine
        from ..pipelines.files.mapping import MAPS

        with self._making:
            if self._made is None:
                MAPS.allowed = current_host().maps_files()
                self._made = Engine(_HostMachine(), lambda: current_host().embeddings_folder())
            return self._made

    def cache_clear(self) -> None:
        """Forgets it: the next call makes another one."""
        with self._making:
            self._made = None


engine = _OneEngine()


class AITKSampler:
    """A handle, texts and numbers to pictures."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        defaults = find_model(DEFAULT_MODEL).defaults
        recipes = recipe_names()
        return {
            "required": {
                "pipeline": ("AITK_PIPELINE", {"tooltip": "From Load AITK Model or Apply AITK LoRA."}),
                "prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        # the editor would take a prompt's braces for choices and `//` for a comment
                        "dynamicPrompts": False,
                        "tooltip": "What to render. [trigger] is replaced by trigger_word.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {"default": "", "multiline": True, "dynamicPrompts": False}
                    | tooltip(
                        "AITKSampler.negative_prompt",
                        "What to steer away from; used where guidance_scale is above 1.",
                    ),
                ),
                "width": _side("Width", defaults.width),
                "height": _side("Height", defaults.height),
                "steps": (
                    "INT",
                    {"default": defaults.steps, "min": 1, "max": MAX_STEPS, "tooltip": "Steps (sample_steps)."},
                ),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": defaults.guidance_scale,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.1,
                        "round": 0.001,
                    }
                    | tooltip(
                        "AITKSampler.guidance_scale",
                        "How strongly the prompt is followed. Above 1 the model is called twice in each guided step.",
                    ),
                ),
                "seed": (
                    "INT",
                    {
                        "default": defaults.seed,
                        "min": 0,
                        "max": MAX_WIDGET_SEED,
                        # a word would be the default, and the name of the control widget in frontends before 1.58
                        "control_after_generate": True,
                    }
                    | tooltip(
                        "AITKSampler.seed",
                        "One seed, one noise on every device: it is drawn on the CPU, as in AI Toolkit. Picture i of a "
                        "batch uses seed + i.",
                    ),
                ),
                "recipe": (
                    recipes,
                    {
                        "default": recipes[0],
                        "display_name": "render as (recipe)",
                        "tooltip": f"For the samples that AI Toolkit drew choose {TRAINER_PREVIEW}. {_recipes()} They "
                        "are different pictures.",
                    },
                ),
                "trigger_word": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Replaces [trigger] and [name] in the prompt; empty leaves them as they are.",
                    },
                ),
                "system_prompt": (
                    "STRING",
                    {"default": "", "multiline": True, "dynamicPrompts": False, "advanced": True}
                    | tooltip(
                        "AITKSampler.system_prompt",
                        "The instruction in front of the prompt; empty is the recipe's own.",
                    ),
                ),
                "batch_size": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": MAX_BATCH,
                        "advanced": True,
                        "tooltip": "Pictures. Each is computed alone, equal to a single run with its seed.",
                    },
                ),
            },
            "optional": {
                "control": (
                    "AITK_CONTROL",
                    {"tooltip": f"From AITK Control Images. {takes_control_images()}"},
                ),
                "latent": (
                    "LATENT",
                    {"tooltip": "A start other than noise, where denoise is below 1. Its size replaces width, height."},
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": MIN_DENOISE,
                        "max": 1.0,
                        "step": 0.01,
                        "advanced": True,
                        "tooltip": "1 starts from noise; less keeps more of the latent. Works as in KSampler.",
                    },
                ),
                "recipe_options": (
                    "AITK_RECIPE_OPTIONS",
                    {"tooltip": "From AITK Recipe Options: what only some recipes read."},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("IMAGE", "AITK_PIPELINE", "INT", "INT", "LATENT", "SIGMAS", "STRING")
    RETURN_NAMES = ("image", "pipeline", "width", "height", "latent", "sigmas", "report")
    OUTPUT_TOOLTIPS = (
        "The pictures.",
        "The pipeline as it came in.",
        "Width as rendered, after snapping.",
        "Height as rendered, after snapping.",
        "The final latents, for VAE Decode, upscaling, or another sampler.",
        "The noise levels that were used.",
        "JSON: everything that decided the pictures. AITK Save Image stores it in the file.",
    )
    FUNCTION = "sample"
    CATEGORY = CATEGORY
    DESCRIPTION = "Renders as the chosen reference does: schedule, templates, snapping, guidance, seeding and LoRA."
    SEARCH_ALIASES = search_words(
        "ai toolkit sampler", "ksampler", "text to image", "image to image", "trainer preview", "sample", "trigger word"
    )

    @classmethod
    def VALIDATE_INPUTS(cls, seed: int | None = None) -> bool | str:
        """The range of seeds is the generators', which is larger than the widget's: ComfyUI leaves it to this."""
        if seed is None:
            # linked, and not known yet
            return True
        try:
            check_seed(seed)
        except InputError as error:
            return str(error)
        return True

    def sample(
        self,
        pipeline: PipelineHandle,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        steps: int,
        guidance_scale: float,
        seed: int,
        recipe: str,
        trigger_word: str = "",
        system_prompt: str = "",
        batch_size: int = 1,
        control: ControlImages | None = None,
        latent: dict[str, Any] | None = None,
        denoise: float = 1.0,
        recipe_options: Chosen | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        check_pipeline(pipeline)
        if control is not None and not isinstance(control, ControlImages):
            raise InputError("control is no AITK_CONTROL. Connect AITK Control Images.")
        if recipe_options is not None and not isinstance(recipe_options, Chosen):
            raise InputError("recipe_options is no AITK_RECIPE_OPTIONS. Connect AITK Recipe Options.")
        request = SampleRequest(
            recipe=recipe,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            trigger_word=trigger_word.strip() if isinstance(trigger_word, str) else trigger_word,
            system_prompt=system_prompt,
            batch_size=batch_size,
            denoise=denoise,
            latent=None if latent is None else _start(latent),
            latent_downscale=None if latent is None else _downscale(latent),
            control=control,
            recipe_options=recipe_options or Chosen(),
        )
        host, latent_format = current_host(), find_model(pipeline.model).latent.format
        with NodeObserver(host, unique_id, "importing PyTorch and diffusers", latent_format) as observer:
            from ..pipelines.run.sample import sample

            result = sample(engine(), pipeline, request, observer)
        closing = "\n".join(result.notes) or f"{result.size.width} x {result.size.height}, {recipe}"
        host.show_text(unique_id, closing)
        report = json.dumps(result.report, ensure_ascii=False, indent=1)
        size = result.size
        latents = {"samples": result.latent}
        return {
            # outlives the run: the editor takes progress texts away at its end, and shows these; the server's history
            # keeps them for clients that are no page
            "ui": {REPORT_KEY: [report], "text": [closing]},
            "result": (result.images, pipeline, size.width, size.height, latents, result.sigmas, report),
        }


def _start(latent: dict[str, Any]) -> torch.Tensor:
    """The tensor of ComfyUI's LATENT.

    Raises:
        InputError: it carries a mask, which this sampler would have to ignore.
    """
    samples = latent_samples(latent)
    if latent.get("noise_mask") is not None:
        raise InputError("The latent carries an inpainting mask, which this sampler does not apply. Remove the mask.")
    return samples


def _downscale(latent: dict[str, Any]) -> int | None:
    """Pixels per latent pixel, as ComfyUI's newer nodes for empty latents say it."""
    value = latent.get("downscale_ratio_spacial")
    return int(value) if isinstance(value, int | float) and 1 <= value <= 64 else None


def _side(name: str, default: int) -> tuple[str, dict[str, Any]]:
    return (
        "INT",
        {
            "default": default,
            "min": 0,
            "max": _MAX_SIDE,
            "step": _SIDE_STEP,
            "tooltip": f"{name} in pixels. The recipe snaps it; the size that was rendered is on the outputs.",
        },
    )


def _recipes() -> str:
    """What each recipe is, in a sentence; those of the trainer's earlier times in one for all."""
    recipes = [recipe for model in catalogue().values() for recipe in model.recipes.values()]
    found = {one.name: SUMMARIES.get(one.name, one.summary) for one in recipes if not (one.era and one.era.last)}
    found[f"{TRAINER_PREVIEW} until a day"] = "what AI Toolkit rendered of the model until then."
    return " ".join(f"{name}: {summary}" for name, summary in found.items())
