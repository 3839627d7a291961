"""The library behind the nodes: models, LoRA, sampling. Knows nothing of ComfyUI and imports torch late."""
