"""The recipes of Krea 2 side by side, and what AI Toolkit did before. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...pictures.sizes import SizeRule
from ..option import Option
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Era, Recipe

# AI Toolkit krea2/src/text_encoder.py
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34  # tokens of the template's start
TEXT_LENGTH = 512  # tokens of a prompt at most
STATES = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)  # hidden states side by side; 0 are the token embeddings
# layers that AI Toolkit leaves as they are when it quantises: krea2.py get_quantization_exclude_modules
_PLAIN = {"transformer": ("first", "tmlp*", "tproj*", "txtmlp*", "txtfusion.projector", "last*")}

OPTIONS = (
    Option(
        "schedule_mu",
        0.0,
        "Krea 2's trainer preview: how far the steps are shifted towards noise, whatever the size; schedule_mu in a "
        "training job's model_kwargs. 0 takes it from the size, as AI Toolkit does by itself: 0.91 at 1024 x 1024.",
        place=7,
        low=0.0,
        high=10.0,
    ),
)

Guidance = Literal["above 1 minus 1", "above 0 as given"]


@dataclass(frozen=True)
class Krea2Recipe(Recipe):
    """What Krea 2's recipes differ in. The guided prediction is c + g' * (c - u), c for the prompt.

    Attributes:
        guidance: g' of the sampler's guidance_scale g: ``above 1 minus 1``: g - 1; ``above 0 as given``: g. Where g is
            not above that number the model is called for the prompt alone.
        cast_rope: whether the text encoder's rotary frequencies are rounded to the run's dtype, and the angles of its
            vision tower.
        tiles: whether it decodes in tiles where the run's ``vae_tiling`` says so.
        schedule_mu: the shift of the steps; 0 is that of the picture's size.
        isolated: whether control images see nothing but each other, in the first call alone.
        match_target_res: whether they are brought to as many pixels as the picture has, and not only scaled down.
        first_image_twice: whether the text encoder sees the first of them twice.
        rounded_sight: whether the text encoder sees them with values in the run's dtype.
    """

    guidance: Guidance
    cast_rope: bool
    tiles: bool
    schedule_mu: float = 0.0
    isolated: bool = False
    match_target_res: bool = False
    first_image_twice: bool = False
    rounded_sight: bool = True

    @property
    def guided_above(self) -> float:
        return 0.0 if self.guidance == "above 0 as given" else 1.0


REFERENCE = Krea2Recipe(
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=16, small="error", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="addmm",
    prompt_flags=False,
    noise="cpu",
    system_prompt="",
    control_images=0,
    posterior="mean",
    options={},
    plain=_PLAIN,
    guidance="above 1 minus 1",
    cast_rope=True,
    tiles=True,
    sources={
        "size": "ai-toolkit-inference src/pipelines/krea2.py: resolution_divisor 16",
        "lora_application": "ai-toolkit-inference src/pipelines/krea2.py _load_pipeline: merged as it is loaded",
        "merge_arithmetic": "ai-toolkit-inference src/pipelines/krea2.py _merge_lora_to_transformer",
        "lora_arithmetic": "on quantised weights, which it does not know, AI Toolkit's live branch",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "noise": "ai-toolkit-inference src/pipelines/krea2.py: a generator on the CPU; float32",
        "plain": "no reference: it quantises nothing; AI Toolkit's choice is taken",
        "guidance": "ai-toolkit-inference src/pipelines/krea2.py: max(0, guidance_scale - 1)",
        "cast_rope": "ai-toolkit-inference src/pipelines/krea2.py: text_encoder.to(device, dtype=dtype)",
        "tiles": "no reference: ai-toolkit-inference never tiles; the option's meaning is taken",
    },
)

TRAINER = Krea2Recipe(
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=16, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
    prompt_flags=True,
    noise="cpu",
    system_prompt="",
    control_images=0,
    posterior="mean",
    options={"schedule_mu": "schedule_mu"},
    plain=_PLAIN,
    era=Era("2026-07-13", None, "0.10.24"),
    guidance="above 1 minus 1",
    cast_rope=False,
    tiles=True,
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig floors to 8, krea2.py then to 16",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier, live when quantised",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "noise": "AI Toolkit krea2/src/pipeline.py: float32, from torch.manual_seed's generator of the CPU",
        "options": "AI Toolkit krea2/src/pipeline.py: model_kwargs.schedule_mu",
        "plain": "AI Toolkit krea2.py get_quantization_exclude_modules (7602e476)",
        "guidance": "AI Toolkit krea2.py generate_single_image: max(0, guidance_scale - 1) (6233efe1)",
        "cast_rope": "AI Toolkit krea2.py load_model: text_encoder.to(device), without a dtype",
        "tiles": "AI Toolkit krea2.py decode_latents: low_vram (a803611e)",
    },
)


def _until(last: str, era: Era, after: Krea2Recipe, **change: object) -> Krea2Recipe:
    """What was before another recipe: the same, but for this."""
    summary = f"as AI Toolkit rendered Krea 2 until {last}."
    found = replace(after, name=f"{TRAINER_PREVIEW} until {last}", era=era, summary=summary)
    return replace(found, **change)  # pyright: ignore[reportArgumentType]


# from the latest back; the versions are those of the commits that began each time
UNTIL_JULY_12 = _until("2026-07-12", Era("2026-07-08", "2026-07-12", "0.10.21"), TRAINER, plain={})
UNTIL_JULY_7 = _until(
    "2026-07-07", Era("2026-06-23", "2026-07-07", "0.10.17"), UNTIL_JULY_12, guidance="above 0 as given"
)

RECIPES = (REFERENCE, TRAINER, UNTIL_JULY_12, UNTIL_JULY_7)
