"""The recipes of the models that edit pictures, side by side, and what AI Toolkit did before. Imports no torch.

Qwen-Image-Edit takes one control image, and Qwen-Image-Edit-2509 and -2511 up to three. AI Toolkit calls diffusers'
pipeline for the former and its own copy of it, without the CFG norm, for the latter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...pictures.sizes import SizeRule
from ..option import FIRST_IMAGE_TWICE, Option
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Era
from .recipes import FUSED, QwenImageRecipe

# diffusers pipeline_qwenimage_edit.py and pipeline_qwenimage_edit_plus.py prompt_template_encode; what `{}` stands for
# begins with the pictures
EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
EDIT_TEMPLATE_TOKENS = 64  # in front of the pictures, whose rows are left out: prompt_template_encode_start_idx
MOST_POSITIONS = 4096  # of diffusers' rotary tables, in which the text's begin where the largest picture's end
CONTROL_PIXELS = 1024 * 1024  # of a control image as the autoencoder gets it: VAE_IMAGE_SIZE
# of a control image as the text encoder sees it: AI Toolkit qwen_image_edit.py target_area, CONDITION_IMAGE_SIZE
EDIT_SEEN_PIXELS, PLUS_SEEN_PIXELS = 1024 * 1024, 384 * 384

OPTIONS = (
    Option(
        "do_cfg_norm",
        False,
        "Qwen-Image-Edit-2509 and -2511: gives what guidance makes of a token the length of the prompt's own "
        "prediction again, as AI Toolkit does where a job's sample section sets it.",
        place=5,
        advanced=True,
    ),
    FIRST_IMAGE_TWICE,
)
_PLUS_OPTIONS = {"do_cfg_norm": "cfg_norm", "first_image_twice": "first_image_twice"}


@dataclass(frozen=True)
class QwenEditRecipe(QwenImageRecipe):
    """What the recipes of these models differ in.

    Attributes:
        numbered: whether the text names the pictures, ``Picture 1: ``, as of 2509.
        seen_pixels: of a control image as the text encoder sees it, about.
        seen_again: whether the negative prompt's pictures are those of the prompt, resized once more.
        seen_swapped: whether width and height of what the text encoder sees change places.
        first_image_twice: whether it sees the first control image twice.
        grid_positions: whether a picture's rows in the text have positions of rows and columns.
        squash: how a control image is brought to the picture's size before the autoencoder gets it; ``no`` keeps its
            shape.
    """

    numbered: bool
    seen_pixels: int
    seen_again: bool
    seen_swapped: bool
    first_image_twice: bool
    grid_positions: bool
    squash: Literal["no", "bilinear", "lanczos"]


EDIT_REFERENCE = QwenEditRecipe(
    name=REFERENCE_PIPELINE,
    size=SizeRule(floor=32, small="error", multiple=16),
    lora_arithmetic="peft",
    lora_application="live",
    merge_arithmetic="float32",
    prompt_flags=False,
    noise="cpu",
    system_prompt="",
    control_images=1,
    posterior="mean",
    options={},
    cfg_norm=True,
    cast_rope=False,
    tiled_by_low_vram=True,
    text_length=MOST_POSITIONS,
    numbered=False,
    seen_pixels=EDIT_SEEN_PIXELS,
    seen_again=False,
    seen_swapped=True,
    first_image_twice=False,
    grid_positions=True,
    squash="lanczos",
    sources={
        "size": "ai-toolkit-inference src/pipelines/qwen_image.py: resolution_divisor 32",
        "lora_arithmetic": "ai-toolkit-inference src/pipelines/base.py: set_adapters, that is PEFT in the base's dtype",
        "lora_application": "ai-toolkit-inference src/pipelines/qwen_image.py: adapters stay as they are",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "noise": "ai-toolkit-inference src/pipelines/base.py: a generator on the CPU",
        "control_images": "ai-toolkit-inference src/pipelines/qwen_image.py QwenImageEditPipeline: control_image",
        "posterior": "diffusers pipeline_qwenimage_edit.py _encode_vae_image: argmax",
        "cfg_norm": "diffusers pipeline_qwenimage_edit.py __call__",
        "cast_rope": "ai-toolkit-inference: from_pretrained leaves the frequencies in float32",
        "tiled_by_low_vram": "no reference: ai-toolkit-inference never tiles; the option's meaning is taken",
        "text_length": "diffusers pipeline_qwenimage_edit.py cuts none; its transformer has so many positions",
        "seen_pixels": "ai-toolkit-inference src/pipelines/qwen_image.py _preprocess_ctrl_for_encode",
        "seen_swapped": "ai-toolkit-inference src/pipelines/qwen_image.py: w = sqrt(area * h / w), h = w / ratio",
        "grid_positions": "transformers 4.57.3, which ai-toolkit-inference pins: get_rope_index",
        "squash": "ai-toolkit-inference src/pipelines/qwen_image.py: resize((width, height), Image.LANCZOS)",
    },
)
PLUS_REFERENCE = replace(
    EDIT_REFERENCE,
    control_images=3,
    numbered=True,
    seen_pixels=PLUS_SEEN_PIXELS,
    squash="no",
    sources={
        **EDIT_REFERENCE.sources,
        "control_images": "ai-toolkit-inference src/pipelines/qwen_image.py QwenImageEditPlusPipeline: up to 3",
        "cfg_norm": "diffusers pipeline_qwenimage_edit_plus.py __call__, which is called as it is",
        "numbered": "diffusers pipeline_qwenimage_edit_plus.py _get_qwen_prompt_embeds",
        "squash": "ai-toolkit-inference hands the images on as they are",
    },
)
REFERENCE_2511 = replace(
    PLUS_REFERENCE,
    lora_application="merged",
    merge_arithmetic="peft",
    sources={**PLUS_REFERENCE.sources, **FUSED},
)

EDIT_TRAINER = QwenEditRecipe(
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=32, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
    prompt_flags=True,
    noise="cpu",
    system_prompt="",
    control_images=1,
    posterior="mean",
    options={},
    era=Era("2026-07-10", None, "0.10.22"),
    cfg_norm=True,
    cast_rope=True,
    tiled_by_low_vram=True,
    text_length=MOST_POSITIONS,
    numbered=False,
    seen_pixels=EDIT_SEEN_PIXELS,
    seen_again=False,
    seen_swapped=False,
    first_image_twice=False,
    grid_positions=False,
    squash="bilinear",
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig floors to 8, qwen_image_edit.py then to 32",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier, live when quantised",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "noise": "diffusers pipeline_qwenimage_edit.py prepare_latents; AI Toolkit's generator is the CPU's",
        "control_images": "AI Toolkit qwen_image_edit.py generate_single_image: ctrl_img alone",
        "posterior": "diffusers pipeline_qwenimage_edit.py _encode_vae_image: argmax",
        "cfg_norm": "diffusers pipeline_qwenimage_edit.py __call__",
        "cast_rope": "AI Toolkit qwen_image.py load_model: text_encoder.to(device, dtype=dtype) casts the buffers too, "
        "and transformers 5.5.3, which it pins, makes the vision tower's angles in their dtype",
        "tiled_by_low_vram": "AI Toolkit qwen_image_edit.py generate_single_image: vae.enable_tiling (fe824871)",
        "text_length": "diffusers pipeline_qwenimage_edit.py cuts none; its transformer has so many positions",
        "seen_pixels": "AI Toolkit qwen_image_edit.py get_prompt_embeds: target_area",
        "seen_swapped": "AI Toolkit qwen_image_edit.py get_prompt_embeds, put right in 4ef5cbe5",
        "grid_positions": "diffusers passes no mm_token_type_ids, without which transformers 5 gives none (3e0c9040)",
        "squash": "AI Toolkit qwen_image_edit.py generate_single_image: resize, Image.BILINEAR",
    },
)
PLUS_TRAINER = replace(
    EDIT_TRAINER,
    control_images=3,
    options=_PLUS_OPTIONS,
    cfg_norm=False,
    numbered=True,
    seen_pixels=PLUS_SEEN_PIXELS,
    seen_again=True,
    squash="no",
    sources={
        **EDIT_TRAINER.sources,
        "control_images": "AI Toolkit qwen_image_edit_plus.py generate_single_image: ctrl_img or _1, _2, _3",
        "options": "AI Toolkit config_modules.py SampleConfig.do_cfg_norm, SampleItem.ctrl_img_1; base_model.py",
        "cfg_norm": "AI Toolkit qwen_image_pipelines.py: off unless do_cfg_norm (b7c04efb)",
        "numbered": "diffusers pipeline_qwenimage_edit_plus.py _get_qwen_prompt_embeds",
        "seen_pixels": "AI Toolkit qwen_image_edit_plus.py get_prompt_embeds: CONDITION_IMAGE_SIZE",
        "seen_again": "AI Toolkit qwen_image_edit_plus.py get_prompt_embeds writes into the list that it is given",
        "squash": "AI Toolkit qwen_image_edit_plus.py generate_single_image hands the images on as they are",
    },
)


def _until(last: str, era: Era, after: QwenEditRecipe, what: str, **change: object) -> QwenEditRecipe:
    """What was before another recipe: the same, but for this."""
    summary = f"as AI Toolkit rendered these models until {last}: {what}."
    found = replace(after, name=f"{TRAINER_PREVIEW} until {last}", era=era, summary=summary)
    return replace(found, **change)  # pyright: ignore[reportArgumentType]


def _earlier(now: QwenEditRecipe, first: str, version: str) -> tuple[QwenEditRecipe, ...]:
    """The recipes before the present one, from the latest back; versions are those of the commits that began each time.

    Until 22 March 2026 a mask of ones went along, which no attention saw: see ``recipes.py``.

    Args:
        now: the present one.
        first, version: day and version of AI Toolkit that began the oldest.
    """
    july = _until(
        "2026-07-09",
        Era("2026-04-14", "2026-07-09", "0.9.1"),
        now,
        "low_vram did not tile",
        tiled_by_low_vram=False,
    )
    april = _until(
        "2026-04-13",
        Era("2026-03-28", "2026-04-13", "0.7.33"),
        july,
        "a control image's rows in the text had positions in a grid",
        grid_positions=True,
        sources={
            **july.sources,
            "grid_positions": "transformers 4.57.3, which it pinned: get_rope_index",
        },
    )
    march = _until(
        "2026-03-27",
        Era(first, "2026-03-27", version),
        april,
        "the text encoder saw control images with width and height swapped",
        seen_swapped=True,
    )
    return july, april, march


_PLUS_EARLIER = _earlier(PLUS_TRAINER, "2025-10-01", "0.6.1")
_PLUS_FIRST = _until(
    "2025-09-30",
    Era("2025-09-24", "2025-09-30", "0.5.10"),
    _PLUS_EARLIER[-1],
    "with the CFG norm",
    cfg_norm=True,
    options={"first_image_twice": "first_image_twice"},
)

EDIT_RECIPES = (EDIT_REFERENCE, EDIT_TRAINER, *_earlier(EDIT_TRAINER, "2025-08-21", "0.5.3"))
PLUS_RECIPES = (PLUS_REFERENCE, PLUS_TRAINER, *_PLUS_EARLIER, _PLUS_FIRST)
# diffusers knows what this one is since then
RECIPES_2511 = (REFERENCE_2511, PLUS_TRAINER, *_earlier(PLUS_TRAINER, "2025-12-26", "0.7.13"))
