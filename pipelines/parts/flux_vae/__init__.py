"""FLUX.1's autoencoder, which Lumina Image 2.0, OmniGen2 and Z-Image have too."""
