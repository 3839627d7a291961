"""Qwen-Image's autoencoder: both naming schemes, the configuration that follows from shapes, tiles, ComfyUI's scale."""

from __future__ import annotations

import pytest
import torch
from comfyui_aitk.headless.tiny.qwen_image_vae import qwen_image_vae, wan_vae
from comfyui_aitk.pipelines.files.header import TensorInfo
from comfyui_aitk.pipelines.parts.qwen_image_vae.autoencoder import decoded, encoded, scaled
from comfyui_aitk.pipelines.parts.qwen_image_vae.files import QWEN_IMAGE_VAE
from diffusers import AutoencoderKLQwenImage
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers


def vae(width: int = 4) -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    made = qwen_image_vae(width)
    assert isinstance(made, AutoencoderKLQwenImage)
    return made.eval()


def infos(tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", tuple(value.shape)) for name, value in tensors.items()}


def test_wan_names_are_those_that_diffusers_converts() -> None:
    own = vae().state_dict()
    original = wan_vae(own)
    converted = convert_wan_vae_to_diffusers(dict(original))
    assert converted.keys() == own.keys()
    wan, _ = QWEN_IMAGE_VAE.layouts
    places = wan.places(infos(original))
    assert {stored: place.name for stored, (place,) in places.items()} == {
        stored: name for stored, value in original.items() for name in [_same(value, own)]
    }


def _same(value: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    (name,) = [name for name, other in tensors.items() if value.data_ptr() == other.data_ptr()]
    return name


@pytest.mark.parametrize("width", [4, 96])
def test_shapes_tell_the_configuration(width: int) -> None:
    with torch.device("meta"):
        made = qwen_image_vae(width)
    assert isinstance(made, AutoencoderKLQwenImage)
    told = QWEN_IMAGE_VAE.config(infos(made.state_dict()))
    assert told.pop("_class_name") == "AutoencoderKLQwenImage"
    assert told == {key: made.config[key] for key in told}


def test_both_layouts_are_told_apart() -> None:
    own = vae().state_dict()
    wan, diffusers = QWEN_IMAGE_VAE.layouts
    original = infos({f"vae.{name}": value for name, value in wan_vae(own).items()})
    assert (wan.prefix_in(original), diffusers.prefix_in(original)) == ("vae.", None)
    assert (wan.prefix_in(infos(own)), diffusers.prefix_in(infos(own))) == (None, "")


@pytest.mark.parametrize(("height", "width"), [(256, 256), (272, 64), (64, 464)])
@torch.no_grad()
def test_tiles_are_diffusers_own_and_leave_nothing_behind(height: int, width: int) -> None:
    ours, theirs = vae(), vae()
    pixels = torch.rand(1, 3, height, width) * 2 - 1
    whole = encoded(ours, pixels, tiled=False)
    theirs.enable_tiling()
    tiles = theirs.encode(pixels[:, :, None]).latent_dist.mode()
    assert torch.equal(encoded(ours, pixels, tiled=True), tiles)
    assert torch.equal(decoded(ours, tiles, tiled=True), theirs.decode(tiles).sample[:, :, 0])
    # up to 256 pixels a side nothing is cut
    assert torch.equal(whole, tiles) == (max(height, width) <= 256)
    assert torch.equal(encoded(ours, pixels, tiled=False), whole)


def test_latents_are_scaled_by_each_channels_mean_and_deviation() -> None:
    config = vae().config
    latents = torch.tensor(config["latents_mean"]).view(1, 16, 1, 1, 1) + torch.tensor(config["latents_std"]).view(
        1, 16, 1, 1, 1
    )
    assert torch.allclose(scaled(latents, config), torch.ones(1, 16, 1, 1, 1))
