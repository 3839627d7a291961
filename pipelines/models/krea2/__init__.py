"""Krea 2, raw and distilled: one single-stream transformer, Qwen3-VL 4B as text encoder, Qwen-Image's autoencoder."""

from .facts import KREA2, TURBO

MODELS = (KREA2, TURBO)

__all__ = ["MODELS"]
