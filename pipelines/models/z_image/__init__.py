"""Z-Image, its distilled Turbo and Ostris' De-Turbo: one single-stream transformer, Qwen3 4B, FLUX.1's autoencoder."""

from .facts import DE_TURBO, TURBO, Z_IMAGE

MODELS = (Z_IMAGE, TURBO, DE_TURBO)

__all__ = ["MODELS"]
