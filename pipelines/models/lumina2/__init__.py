"""Lumina Image 2.0: Next-DiT transformer, Gemma2 text encoder, FLUX.1's autoencoder."""

from .facts import MODEL

MODELS = (MODEL,)

__all__ = ["MODELS"]
