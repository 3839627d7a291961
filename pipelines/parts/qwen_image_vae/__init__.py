"""Qwen-Image's autoencoder, which Krea 2 has too: Wan 2.1's network for video, with other weights."""
