"""A narrow autoencoder with FLUX.1's structure, which Lumina2, OmniGen2 and Z-Image have too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL

if TYPE_CHECKING:
    from torch import nn


def flux1_vae() -> nn.Module:
    """A new autoencoder: 16 channels of latents, 8 times smaller than the picture; the weights are diffusers' own."""
    # diffusers annotates these tuples as having one element
    make: Any = AutoencoderKL
    return make(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        # one level of another width: the shortcuts of the real one are there on both ways
        block_out_channels=(32, 64, 32, 32),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=32,
        act_fn="silu",
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
        force_upcast=True,
    )
