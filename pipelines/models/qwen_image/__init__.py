"""Qwen-Image and its versions: one double-stream transformer, Qwen2.5-VL 7B, an autoencoder of Wan 2.1's kind."""

from .facts import QWEN_IMAGE, QWEN_IMAGE_2512

MODELS = (QWEN_IMAGE, QWEN_IMAGE_2512)

__all__ = ["MODELS"]
