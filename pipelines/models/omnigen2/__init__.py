"""OmniGen2: a Next-DiT that also sees reference images, Qwen2.5-VL as text encoder, FLUX.1's autoencoder."""

from .facts import MODEL

MODELS = (MODEL,)

__all__ = ["MODELS"]
