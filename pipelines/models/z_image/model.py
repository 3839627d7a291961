"""Z-Image's code behind the shared run: its parts, its texts, its schedule, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL
from diffusers import __version__ as diffusers_version

from ...errors import FileError, InputError
from ...options import torch_dtype
from ...parts.encoder import Text
from ...parts.flux_vae.autoencoder import DOWNSCALE, FluxVae, decoded, denormalised
from ...parts.language_model.encoder import EncoderSettings
from ...parts.language_model.qwen3 import qwen3_encoder
from ...parts.part import Network
from ...pictures.pixels import to_pixels
from ..model import Model, check_table
from ..schedule import Schedule
from . import loop
from .facts import QWEN3
from .recipes import SHIFT, TEXT_LENGTH, ZImageRecipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

_NEEDS = "Z-Image needs Qwen3 4B."


class ZImage(Model):
    """See :class:`..model.Model`."""

    def __init__(self, facts: ModelFacts) -> None:
        self._vae = FluxVae("Z-Image needs FLUX.1's, ae.safetensors.")
        encoder = qwen3_encoder(QWEN3, states=(-2,), thinking=True, needs=_NEEDS)
        transformer = Network("transformer", _transformer_class(facts), blocks=("layers",))
        super().__init__(facts, (transformer, encoder, self._vae))

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        given, wanted = source.config().get("hidden_size"), transformer.config().get("cap_feat_dim")
        if given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                f"{transformer.name!r} takes {wanted}. {_NEEDS}"
            )
        self._vae.check_channels(checkpoint, "transformer")

    def largest_side(self, checkpoint: Checkpoint) -> int:
        # text counts from 1, and the picture stands one behind it
        _, rows, columns, patch = check_table(checkpoint, "transformer", TEXT_LENGTH + 2)
        return min(rows, columns) * patch * DOWNSCALE

    def texts(self, job: Job) -> list[Text]:
        recipe = _recipe(job)
        # in float32 there is nothing to round: one embedding serves every recipe
        settings = EncoderSettings(recipe.cast_rope and job.dtype != "float32")
        prompts = [job.typed.prompt]
        if job.guidance_scale > recipe.guided_above:
            prompts.append(job.typed.negative_prompt)
        return [Text(prompt, TEXT_LENGTH, settings) for prompt in prompts]

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return (1, self.facts.latent.channels, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def noise(self, generator: torch.Generator, job: Job) -> torch.Tensor:
        """float32 in every run."""
        import torch

        shape = self.latent_shape(job.size)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)

    def schedule(self, job: Job, steps: int) -> Schedule:
        return Schedule(loop.sigmas(_recipe(job), steps))

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, AutoencoderKL)
        image = decoded(autoencoder, latents.to(torch_dtype(job.dtype)))
        return to_pixels(denormalised(image), autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe, settings = _recipe(job), texts[0].settings
        guidance: dict[str, Any] | None = None
        if len(texts) > 1:
            factor = loop.guidance_factor(recipe, job.guidance_scale)
            guidance = {"method": "classifier-free, beyond the prompt's prediction", "factor": factor}
        return {
            "schedule": {
                "name": "flow-match Euler",
                "of": "diffusers",
                "shift": SHIFT,
                "last_step": "changes nothing" if recipe.idle_last_step else "counts",
            },
            "guidance": guidance,
            "guidance_rule": recipe.guidance,
            "latents": "float32",
            "text_encoder": {
                "name": QWEN3.title,
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": TEXT_LENGTH,
            },
        }


def model_of(facts: ModelFacts) -> ZImage:
    return ZImage(facts)


def _transformer_class(facts: ModelFacts) -> type[nn.Module]:
    """diffusers' class, which came with 0.36."""
    try:
        from diffusers import ZImageTransformer2DModel
    except ImportError:
        raise InputError(
            f"{facts.title} needs diffusers 0.36.0 or newer; installed is {diffusers_version}. Update it."
        ) from None
    return ZImageTransformer2DModel


def _recipe(job: Job) -> ZImageRecipe:
    assert isinstance(job.recipe, ZImageRecipe)
    return job.recipe
