"""The recipes of the models that edit pictures, side by side, and what AI Toolkit did before. Imports no torch.

AI Toolkit has one class for these and the plain ones; ``edit`` in a job's model_kwargs makes it these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..option import FIRST_IMAGE_TWICE, Option
from ..recipe import Era
from . import recipes

if TYPE_CHECKING:
    from .recipes import Krea2Recipe

MOST_REFERENCES = 3
# of a control image at most, as the text encoder sees it and as the autoencoder gets it: AI Toolkit krea2.py
SEEN_PIXELS, ENCODED_PIXELS = 384 * 384, 1024 * 1024
OPTIONS = (
    *recipes.OPTIONS,
    Option(
        "kv_cache",
        True,
        "Krea 2 Edit: control images see nothing but each other, as with kv_cache in a training job's "
        "model_kwargs. A LoRA wants what it was trained with; AI Toolkit's presets have it since 2026-07-16.",
        place=8,
        advanced=True,
    ),
    Option(
        "match_target_res",
        True,
        "Krea 2 Edit: brings control images to as many pixels as the picture has, as with match_target_res in a "
        "training job's model_kwargs. Else only those above a megapixel are scaled, down to it.",
        place=9,
        advanced=True,
    ),
    FIRST_IMAGE_TWICE,
)
_READ = {"kv_cache": "isolated", "match_target_res": "match_target_res"}


def _editing(plain: Krea2Recipe, **change: object) -> Krea2Recipe:
    sources = {
        **plain.sources,
        "control_images": "AI Toolkit krea2.py generate_single_image: ctrl_img or ctrl_img_1, ctrl_img_2, ctrl_img_3",
        "posterior": "AI Toolkit krea2.py encode_images: latent_dist.sample() without a generator",
        "isolated": "AI Toolkit krea2/src/pipeline.py: model_kwargs.kv_cache (a4bbe167)",
        "match_target_res": "AI Toolkit krea2.py _encode_ref_latents: model_kwargs.match_target_res",
        "first_image_twice": "AI Toolkit config_modules.py GenerateImageConfig: ctrl_img_1 is ctrl_img where it is not "
        "set; base_model.py generate_images hands both to the text encoder",
        "rounded_sight": "AI Toolkit base_model.py generate_images: the control images in the job's dtype",
    }
    options = {**plain.options, **_READ, "first_image_twice": "first_image_twice"}
    editing = replace(
        plain,
        control_images=MOST_REFERENCES,
        posterior="trainer",
        options=options,
        sources=sources,
        isolated=True,
        match_target_res=True,
    )
    return replace(editing, **change)  # pyright: ignore[reportArgumentType]


REFERENCE = _editing(recipes.REFERENCE, options=_READ, rounded_sight=False)
REFERENCE = replace(
    REFERENCE,
    sources={
        **REFERENCE.sources,
        "posterior": "ai-toolkit-inference draws by the request's generator of the CPU, then the noise; here on a CPU "
        "alone",
        "rounded_sight": "ai-toolkit-inference src/pipelines/krea2.py _prep_vlm_images: float32",
        "first_image_twice": "ai-toolkit-inference shows each once",
    },
)
TRAINER = _editing(recipes.TRAINER)
UNTIL_JULY_12 = _editing(recipes.UNTIL_JULY_12)
# the first that edited; kv_cache came with the next version
UNTIL_JULY_7 = _editing(
    recipes.UNTIL_JULY_7,
    era=Era("2026-07-04", "2026-07-07", "0.10.20"),
    options={name: field for name, field in TRAINER.options.items() if name != "kv_cache"},
    isolated=False,
)

RECIPES = (REFERENCE, TRAINER, UNTIL_JULY_12, UNTIL_JULY_7)
