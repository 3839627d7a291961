"""The recipes of Z-Image side by side, and what AI Toolkit did before. Imports no torch.

AI Toolkit calls diffusers' ``ZImagePipeline``, whose guidance and steps changed as well as AI Toolkit's own rules: each
time of its own look has a recipe of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...pictures.sizes import SizeRule
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Era, Recipe

TEXT_LENGTH = 512  # tokens, template counted; diffusers pipeline_z_image.py max_sequence_length
SHIFT = 3.0  # AI Toolkit z_image.py scheduler_config, and scheduler/scheduler_config.json of the repositories
# layers that AI Toolkit leaves as they are when it quantises: toolkit/models/v2/z_image.py
_PLAIN = {"transformer": ("t_embedder*", "cap_embedder*", "all_x_embedder*", "all_final_layer*", "siglip_embedder*")}

Guidance = Literal["above 1 minus 1", "above 0 as given", "above 1 as given"]


@dataclass(frozen=True)
class ZImageRecipe(Recipe):
    """What Z-Image's recipes differ in. The guided prediction is c + g' * (c - u), c for the prompt.

    Attributes:
        guidance: g' of the sampler's guidance_scale g: ``above 1 minus 1``: g - 1; ``above 0 as given`` and ``above 1
            as given``: g. Where g is not above that number the model is called for the prompt alone.
        idle_last_step: whether the last of the steps stands at the end already and changes nothing.
        cast_rope: whether Qwen3's rotary frequencies are rounded to the run's dtype.
    """

    guidance: Guidance
    idle_last_step: bool
    cast_rope: bool

    @property
    def guided_above(self) -> float:
        return 0.0 if self.guidance == "above 0 as given" else 1.0


REFERENCE = ZImageRecipe(
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="peft",
    lora_application="live",
    merge_arithmetic="float32",
    prompt_flags=False,
    noise="cpu",
    system_prompt="",
    control_images=0,
    posterior="mean",
    options={},
    plain=_PLAIN,
    guidance="above 0 as given",
    idle_last_step=True,
    cast_rope=False,
    sources={
        "size": "model page zimage: sides are floored to a multiple of 32",
        "lora_arithmetic": "model page: adapters by set_adapters, that is PEFT in the base's dtype",
        "lora_application": "model page: dynamic via adapters",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "noise": "ai-toolkit-inference src/pipelines/base.py: a generator on the CPU; diffusers draws float32",
        "plain": "no reference: the page quantises nothing; AI Toolkit's choice is taken",
        "guidance": "ai-toolkit-inference hands guidance_scale on; diffusers 072d15ee is guided above 0",
        "idle_last_step": "diffusers 072d15ee, which ai-toolkit-inference pins: before #13730",
        "cast_rope": "ai-toolkit-inference: from_pretrained leaves the frequencies in float32",
    },
)

TRAINER = ZImageRecipe(
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
    options={},
    plain=_PLAIN,
    era=Era("2026-07-15", None, "0.10.24"),
    guidance="above 1 minus 1",
    idle_last_step=False,
    cast_rope=True,
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig floors to 8, z_image.py then to 16 (ef57c107)",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier, live when quantised",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "noise": "diffusers pipeline_z_image.py prepare_latents: float32; AI Toolkit's generator is the CPU's",
        "plain": "AI Toolkit toolkit/models/v2/z_image.py get_quantization_exclude_modules (28f2c0ac)",
        "guidance": "AI Toolkit z_image.py generate_single_image: max(0, guidance_scale - 1) (6233efe1)",
        "idle_last_step": "diffusers #13730, in AI Toolkit since its pin c943837 (3e6bd874)",
        "cast_rope": "AI Toolkit z_image.py load_model: text_encoder.to(device, dtype=dtype) casts the buffers as well",
    },
)


def _until(last: str, era: Era, after: ZImageRecipe, **change: object) -> ZImageRecipe:
    """What was before another recipe: the same, but for this."""
    summary = f"as AI Toolkit rendered Z-Image until {last}."
    found = replace(after, name=f"{TRAINER_PREVIEW} until {last}", era=era, summary=summary)
    return replace(found, **change)  # pyright: ignore[reportArgumentType]


# from the latest back; the versions are those of the commits that began each time
UNTIL_JULY_14 = _until("2026-07-14", Era("2026-07-13", "2026-07-14", "0.10.24"), TRAINER, idle_last_step=True)
UNTIL_JULY_12 = _until("2026-07-12", Era("2026-07-08", "2026-07-12", "0.10.21"), UNTIL_JULY_14, plain={})
UNTIL_JULY_7 = _until(
    "2026-07-07", Era("2026-05-28", "2026-07-07", "0.9.14"), UNTIL_JULY_12, guidance="above 0 as given"
)
UNTIL_MAY_27 = _until(
    "2026-05-27",
    Era("2026-03-22", "2026-05-27", "0.8.0"),
    UNTIL_JULY_7,
    size=SizeRule(floor=32, small="raise to 64", multiple=16),
)
UNTIL_MARCH_21 = _until(
    "2026-03-21", Era("2025-11-28", "2026-03-21", "0.7.6"), UNTIL_MAY_27, guidance="above 1 as given"
)

RECIPES = (REFERENCE, TRAINER, UNTIL_JULY_14, UNTIL_JULY_12, UNTIL_JULY_7, UNTIL_MAY_27, UNTIL_MARCH_21)
