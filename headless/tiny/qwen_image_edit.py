"""A tiny Qwen-Image-Edit, -2509 or -2511: the tiny Qwen-Image with an encoder whose tower can be told from its tensors.

Its single files and LoRAs are those of :mod:`.qwen_image`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from ...pipelines.models.qwen_image.edit_recipes import EDIT_TEMPLATE
from . import qwen2_5_tokenizer, qwen_image
from .spread import spread

# of the released tower, which single files do not tell: a head's channels, and which blocks see the whole picture
_TOWER = {"depth": 2, "hidden_size": 80, "num_heads": 1, "fullatt_block_indexes": [7, 15, 23, 31]}
_PROMPTS = ("turn the background into a forest and keep the person unchanged", "Picture 1: ", "blurry, low quality")
# preprocessor_config.json of Qwen/Qwen-Image-Edit
_PROCESSOR = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056, "merge_size": 2, "min_pixels": 3136, "patch_size": 14,
    "processor_class": "Qwen2VLProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136}, "temporal_patch_size": 2,
}  # fmt: skip
_PROCESSORS = {"preprocessor_config.json": "Qwen2VLImageProcessor",
               "video_preprocessor_config.json": "Qwen2VLVideoProcessor"}  # fmt: skip


def make_checkpoint(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, *, zero_time: bool = False
) -> Path:
    """Writes a checkpoint of about five megabytes; returns the folder.

    Args:
        folder: made where it is missing.
        seed: decides the weights.
        dtype: in which they are stored.
        zero_time: whether the transformer's configuration has 2511's ``zero_cond_t``.
    """
    qwen_image.make_checkpoint(folder, seed, dtype)
    rng_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        encoder = spread(qwen_image.text_encoder(**_TOWER))
    finally:
        torch.set_rng_state(rng_state)
    nn.Module.to(encoder, dtype)
    shutil.rmtree(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder")  # pyright: ignore[reportCallIssue]
    tokenizer = qwen_image.make_tokenizer((EDIT_TEMPLATE, *_PROMPTS))
    for name in ("tokenizer", "processor"):
        qwen2_5_tokenizer.write_tokenizer(folder / name, tokenizer, qwen_image.SPECIAL_TOKENS)
    for name, kind in _PROCESSORS.items():
        key = "image_processor_type" if name.startswith("pre") else "video_processor_type"
        _write(folder / "processor" / name, {**_PROCESSOR, key: kind})
    config, index = folder / "transformer" / "config.json", folder / "model_index.json"
    _write(config, json.loads(config.read_text()) | {"zero_cond_t": zero_time})
    own = {"_class_name": "QwenImageEditPlusPipeline", "processor": ["transformers", "Qwen2VLProcessor"]}
    _write(index, json.loads(index.read_text()) | own)
    return folder


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")
