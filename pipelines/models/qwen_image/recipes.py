"""The recipes of Qwen-Image side by side, and what AI Toolkit did before. Imports no torch.

AI Toolkit calls diffusers' ``QwenImagePipeline`` as it is, with embeddings and a scheduler of its own making.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...pictures.sizes import SizeRule
from ..recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW, Era, Recipe

# AI Toolkit qwen_image.py scheduler_config, equal to scheduler/scheduler_config.json of Qwen/Qwen-Image: the shift is
# linear in the picture's tokens, and the last level is stretched to
LEAST_TOKENS, MOST_TOKENS, LEAST_SHIFT, MOST_SHIFT = 256, 8192, 0.5, 0.9
LAST_SIGMA = 0.02
# diffusers pipeline_qwenimage.py prompt_template_encode
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
TEMPLATE_TOKENS = 34  # in front of the prompt, whose rows are left out: prompt_template_encode_start_idx
ENCODED_LENGTH = 1024  # tokens of prompt and end of the template that are encoded: tokenizer_max_length
TEXT_LENGTH = 512  # rows of them that the transformer gets: max_sequence_length of the pipeline's call


@dataclass(frozen=True)
class QwenImageRecipe(Recipe):
    """What the recipes of this family differ in.

    Attributes:
        cfg_norm: whether what guidance makes of a token gets the length of the prompt's own prediction again.
        cast_rope: whether the text encoder's rotary frequencies are rounded to the run's dtype, and the angles of its
            vision tower.
        tiled_by_low_vram: whether ``vae_tiling``, a training job's low_vram, decodes in tiles.
        text_length: rows of a text, behind the template's head, that the transformer gets at most.
    """

    cfg_norm: bool
    cast_rope: bool
    tiled_by_low_vram: bool
    text_length: int


# of the two whose adapters the server fuses
FUSED = {
    "lora_application": "ai-toolkit-inference src/pipelines/qwen_image.py: LoraMergeMethod.FUSE",
    "merge_arithmetic": "ai-toolkit-inference src/pipelines/base.py _load_lora: diffusers' fuse_lora",
}

REFERENCE = QwenImageRecipe(
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
    cfg_norm=True,
    cast_rope=False,
    tiled_by_low_vram=True,
    text_length=TEXT_LENGTH,
    sources={
        "size": "model page qwen_image: sides are floored to a multiple of 32; ai-toolkit-inference's code says 16",
        "lora_arithmetic": "ai-toolkit-inference src/pipelines/base.py: set_adapters, that is PEFT in the base's dtype",
        "lora_application": "ai-toolkit-inference src/pipelines/qwen_image.py: adapters stay as they are",
        "prompt_flags": "ai-toolkit-inference takes the prompt as it is",
        "noise": "ai-toolkit-inference src/pipelines/base.py: a generator on the CPU",
        "cfg_norm": "diffusers pipeline_qwenimage.py __call__",
        "cast_rope": "ai-toolkit-inference: from_pretrained leaves the frequencies in float32",
        "tiled_by_low_vram": "no reference: ai-toolkit-inference never tiles; the option's meaning is taken",
        "text_length": "diffusers pipeline_qwenimage.py __call__: max_sequence_length",
    },
)
REFERENCE_2512 = replace(
    REFERENCE,
    lora_application="merged",
    merge_arithmetic="peft",
    sources={**REFERENCE.sources, **FUSED},
)

TRAINER = QwenImageRecipe(
    name=TRAINER_PREVIEW,
    size=SizeRule(floor=32, small="raise to 64", multiple=16),
    lora_arithmetic="trainer",
    lora_application="merged",
    merge_arithmetic="float32",
    prompt_flags=True,
    noise="cpu",
    system_prompt="",
    control_images=0,
    posterior="mean",
    options={},
    era=Era("2026-07-10", None, "0.10.22"),
    cfg_norm=True,
    cast_rope=True,
    tiled_by_low_vram=True,
    text_length=TEXT_LENGTH,
    sources={
        "size": "AI Toolkit config_modules.py GenerateImageConfig floors to 8, qwen_image.py then to 32",
        "lora_arithmetic": "AI Toolkit network_mixins.py ToolkitModuleMixin.forward: float32 branch",
        "lora_application": "AI Toolkit base_model.py generate_images: merged at one multiplier, live when quantised",
        "prompt_flags": "AI Toolkit config_modules.py GenerateImageConfig._process_prompt_string",
        "noise": "diffusers pipeline_qwenimage.py prepare_latents; AI Toolkit's generator is the CPU's",
        "cfg_norm": "diffusers pipeline_qwenimage.py __call__",
        "cast_rope": "AI Toolkit qwen_image.py load_model: text_encoder.to(device, dtype=dtype) casts the buffers too",
        "tiled_by_low_vram": "AI Toolkit qwen_image.py generate_single_image: vae.enable_tiling (fe824871)",
        "text_length": "diffusers pipeline_qwenimage.py __call__: max_sequence_length",
    },
)
# Until 22 March 2026 a mask of ones went along, and none has since; no attention ever saw it. Run with the transformers
# of each diffusers that AI Toolkit pinned, with texts of 9 to 512 rows: equal to the bit, in float32 and bfloat16
UNTIL_JULY_9 = replace(
    TRAINER,
    name=f"{TRAINER_PREVIEW} until 2026-07-09",
    era=Era("2025-08-21", "2026-07-09", "0.5.3"),
    summary="as AI Toolkit rendered Qwen-Image until 2026-07-09: low_vram did not tile.",
    tiled_by_low_vram=False,
)
# from the first pictures on, with the diffusers of 4 August 2025 (7ea065c5), whose max_sequence_length cuts nothing
UNTIL_AUGUST_20 = replace(
    UNTIL_JULY_9,
    name=f"{TRAINER_PREVIEW} until 2025-08-20",
    era=Era("2025-08-04", "2025-08-20", "0.3.16"),
    summary="as AI Toolkit rendered Qwen-Image until 2025-08-20: a long prompt was not cut at 512 tokens.",
    text_length=ENCODED_LENGTH,
)

RECIPES = (REFERENCE, TRAINER, UNTIL_JULY_9, UNTIL_AUGUST_20)
RECIPES_2512 = (REFERENCE_2512, TRAINER, UNTIL_JULY_9)
