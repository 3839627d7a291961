"""Qwen-Image and its versions: one double-stream transformer, Qwen2.5-VL 7B, an autoencoder of Wan 2.1's kind."""

from .edit_facts import QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_2511, QWEN_IMAGE_EDIT_PLUS
from .facts import QWEN_IMAGE, QWEN_IMAGE_2512

MODELS = (QWEN_IMAGE, QWEN_IMAGE_2512, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS, QWEN_IMAGE_EDIT_2511)

__all__ = ["MODELS"]
