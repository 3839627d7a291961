"""AITK Encode Image and AITK Decode Latent: what the sampler takes and gives, by the pipeline's own VAE."""

from __future__ import annotations

import pytest
import torch
from comfyui_aitk.headless.tiny import flux2, omnigen2
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine
from comfyui_aitk.pipelines.errors import AITKError
from diffusers import AutoencoderKL
from rendering import noise_image

RECIPE = "reference pipeline"


def _load(model: str = "lumina2", dtype: str = "float32"):
    return NODE_CLASS_MAPPINGS["LoadAITKModel"]().load(model, "tiny", dtype)[0]


def _encode(images: torch.Tensor, pipeline, recipe: str = RECIPE) -> torch.Tensor:
    return NODE_CLASS_MAPPINGS["AITKEncodeImage"]().encode(images, pipeline, recipe)["result"][0]["samples"]


def _decode(latent: dict, pipeline, recipe: str = RECIPE) -> torch.Tensor:
    return NODE_CLASS_MAPPINGS["AITKDecodeLatent"]().decode(latent, pipeline, recipe)[0]


def _sample(pipeline, **inputs):
    values = {"width": 64, "height": 96, "steps": 2, "guidance_scale": 1.0, "seed": 3, "recipe": RECIPE} | inputs
    cls = NODE_CLASS_MAPPINGS["AITKSampler"]
    found = cls().sample(pipeline, "a cat", "", **values)["result"]
    return dict(zip(cls.RETURN_NAMES, found, strict=True))


@pytest.fixture
def families(host, tmp_path):
    """Model -> its pipeline, of each kind of autoencoder and of sizes."""

    def of(model: str, make) -> object:
        folder = tmp_path / model
        make(folder / "diffusers" / "tiny")
        use_host(PlainHost(folder, host.input, host.output, "cpu"))
        return _load(model)

    return {
        "lumina2": _load(),
        "flux2_klein_4b": of("flux2_klein_4b", lambda folder: flux2.make_checkpoint(folder, "flux2_klein_4b")),
        "omnigen2": of("omnigen2", omnigen2.make_checkpoint),
    }


def test_a_latent_is_what_comfyui_s_vae_encode_gives(host, models):
    """ComfyUI's VAE nodes: the mean, in the scale of the autoencoder itself."""
    images = torch.cat([noise_image(64, 96, seed) for seed in (1, 2)])
    vae = AutoencoderKL.from_pretrained(models / "diffusers" / "tiny" / "vae")
    with torch.no_grad():
        expected = vae.encode(images.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    found = _encode(images, _load())
    assert found.dtype == torch.float32
    # one picture at a time, and through the model's scale and back
    assert torch.allclose(found, expected, atol=1e-5)
    assert engine().resident == {"vae"}, "nothing else is loaded"


def test_a_decoded_latent_is_the_sampler_s_picture(families):
    for model, pipeline in families.items():
        made = _sample(pipeline)
        again = _decode(made["latent"], pipeline)
        # ComfyUI's scale and back: a value on an edge may fall to its other side
        assert ((again - made["image"]).abs() * 255).max() <= 1.001, model
        assert again.dtype == torch.float32


def test_an_encoded_picture_starts_the_sampler(families):
    for model, pipeline in families.items():
        picture = _sample(pipeline)["image"]
        latent = {"samples": _encode(picture, pipeline)}
        kept = _sample(pipeline, latent=latent, denoise=0.05, seed=5)["image"]
        gone = _sample(pipeline, latent=latent, denoise=1.0, seed=5)["image"]
        itself = _decode(latent, pipeline)
        assert (kept - itself).abs().mean() < (gone - itself).abs().mean(), model


def test_the_middle_is_taken_where_the_recipe_has_no_such_size(host):
    images, pipeline = noise_image(75, 109), _load()
    returned = NODE_CLASS_MAPPINGS["AITKEncodeImage"]().encode(images, pipeline, RECIPE)
    assert returned["ui"]["text"] == ["the middle 64 x 96 of 75 x 109 pixels"]
    middle = images[:, 6:102, 5:69]
    assert torch.equal(returned["result"][0]["samples"], _encode(middle, pipeline))
    # sd-scripts does not floor to 32
    assert _encode(noise_image(80, 96), pipeline, "sd-scripts").shape == (1, 16, 12, 10)


def test_alpha_changes_nothing(host):
    images = noise_image(64, 64)
    with_alpha = torch.cat([images, torch.rand(1, 64, 64, 1)], dim=3)
    assert torch.equal(_encode(with_alpha, _load()), _encode(images, _load()))


def test_a_model_that_renders_smaller_than_it_saves_gets_a_latent_of_that_size(families):
    pipeline = families["omnigen2"]
    latent = _encode(noise_image(1536, 1024), pipeline)
    # one megapixel at 3 : 2
    assert latent.shape[2:] == (_sample(pipeline, width=1536, height=1024, steps=1)["latent"]["samples"].shape[2:])


@pytest.mark.parametrize(
    ("images", "recipe", "message"),
    [
        (noise_image(64, 40), RECIPE, "smallest side is 64"),
        (noise_image(64, 40), "trainer preview", "renders at least 64 x 64 of it. Scale it up."),
        (noise_image(64, 64) * float("nan"), RECIPE, "NaN or Inf"),
        (noise_image(64, 64), "no such", "no recipe 'no such'"),
        (None, RECIPE, "no IMAGE"),
    ],
)
def test_what_cannot_be_encoded_is_named(host, images, recipe, message):
    with pytest.raises(AITKError, match=message):
        _encode(images, _load(), recipe)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"samples": torch.zeros(1, 4, 8, 8)}, "Lumina Image 2.0 needs"),
        ({"samples": torch.full((1, 16, 8, 8), float("nan"))}, "NaN or Inf"),
        ({}, "no LATENT"),
        ({"samples": None}, "empty"),
    ],
)
def test_what_cannot_be_decoded_is_named(host, latent, message):
    with pytest.raises(AITKError, match=message):
        _decode(latent, _load())


def test_a_mask_and_empty_latents_are_no_obstacle_to_decoding(host):
    latent = {"samples": torch.zeros(2, 16, 8, 8), "noise_mask": torch.ones(1, 64, 64)}
    assert _decode(latent, _load()).shape == (2, 64, 64, 3)


def test_a_lora_changes_nothing(host):
    pipeline = _load()
    made = NODE_CLASS_MAPPINGS["ApplyAITKLoRA"]().apply(pipeline, "tiny.safetensors", 1.0)[0]
    assert torch.equal(_encode(noise_image(64, 64), made), _encode(noise_image(64, 64), pipeline))
