"""Krea 2, raw and distilled, and both with control images: one transformer, Qwen3-VL 4B, Qwen-Image's autoencoder."""

from .facts import KREA2, O_EDIT, O_EDIT_TURBO, TURBO

MODELS = (KREA2, TURBO, O_EDIT, O_EDIT_TURBO)

__all__ = ["MODELS"]
