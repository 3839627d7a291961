"""FLUX.2: one transformer and autoencoder; dev with Mistral and embedded guidance, klein with Qwen3 and real one."""

from .facts import FLUX2, KLEIN_4B, KLEIN_9B

MODELS = (FLUX2, KLEIN_4B, KLEIN_9B)

__all__ = ["MODELS"]
