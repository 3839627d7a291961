"""Krea 2's code behind the shared run: its parts, its texts, its schedule, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKLQwenImage

from ...errors import FileError
from ...options import torch_dtype
from ...parts.encoder import Text
from ...parts.language_model.qwen3_vl import Qwen3Vl, TemplateSettings
from ...parts.language_model.qwen3_vl_pixels import check_seen
from ...parts.language_model.qwen3_vl_seeing import SeeingQwen3Vl, SeeingTemplate
from ...parts.part import Network
from ...parts.qwen_image_vae.autoencoder import DOWNSCALE, QwenImageVae, constants, decoded
from ...pictures.pixels import to_pixels
from ..model import Model
from ..option import VAE_TILING
from ..schedule import Schedule
from . import control, loop
from .facts import O_EDIT, O_EDIT_TURBO, QWEN3_VL, SEEING
from .network import Krea2Transformer
from .recipes import AFTER, BEFORE, DROPPED, STATES, TEXT_LENGTH, Krea2Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

_NEEDS = "Krea 2 needs Qwen3-VL 4B."
# pixels; positions are computed, and beyond 14,000 the shift of the steps leaves what float32 holds
_LARGEST_SIDE = 8192
_ACTIVATIONS = 1 << 31  # bytes


class Transformer(Network):
    """The transformer in the released layout."""

    def __init__(self) -> None:
        super().__init__("transformer", Krea2Transformer, blocks=("blocks",), needs="which is not Krea 2's")

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        return _ACTIVATIONS


class Krea2(Model):
    """See :class:`..model.Model`."""

    def __init__(self, facts: ModelFacts) -> None:
        self._vae = QwenImageVae("Krea 2 needs Qwen-Image's, qwen_image_vae.safetensors.")
        super().__init__(facts, (Transformer(), self._encoder(), self._vae))

    def _encoder(self) -> Qwen3Vl:
        return Qwen3Vl(QWEN3_VL, states=STATES, needs=_NEEDS)

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        config = transformer.config()
        given, wanted = source.config().get("hidden_size"), config.get("text_width")
        if given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                f"{transformer.name!r} takes {wanted}. {_NEEDS}"
            )
        if config.get("text_states") != len(STATES):
            raise FileError(
                f"The transformer of {transformer.name!r} takes {config.get('text_states')} hidden states a token, and "
                f"Krea 2 has {len(STATES)}. Choose a file of Krea 2."
            )
        self._vae.check_channels(checkpoint, "transformer", config.get("channels", 16))

    def largest_side(self, checkpoint: Checkpoint) -> int:
        return _LARGEST_SIDE

    def texts(self, job: Job) -> list[Text]:
        recipe = _recipe(job)
        # in float32 there is nothing to round: one embedding serves every recipe
        settings = TemplateSettings(recipe.cast_rope and job.dtype != "float32", BEFORE, AFTER, DROPPED)
        prompts = [job.typed.prompt]
        if job.guidance_scale > recipe.guided_above:
            prompts.append(job.typed.negative_prompt)
        return [Text(prompt, TEXT_LENGTH, settings) for prompt in prompts]

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        # a picture is one frame, as the autoencoder has it
        return (1, self.facts.latent.channels, 1, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def noise(self, generator: torch.Generator, job: Job) -> torch.Tensor:
        """float32 in every run."""
        import torch

        shape = self.latent_shape(job.size)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)

    def schedule(self, job: Job, steps: int) -> Schedule:
        return Schedule(loop.sigmas(loop.mu_of(_recipe(job), job.size), steps))

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, AutoencoderKLQwenImage)
        frames = latents.to(torch_dtype(job.dtype))
        mean, std = constants(autoencoder.config, frames)
        image = decoded(autoencoder, frames * std + mean, tiled=_tiled(job))
        # widened first, unlike diffusers
        return to_pixels((image.float().clamp(-1, 1) + 1) / 2, autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe, settings = _recipe(job), texts[0].settings
        guidance: dict[str, Any] | None = None
        if len(texts) > 1:
            factor = loop.guidance_factor(recipe, job.guidance_scale)
            guidance = {"method": "classifier-free, beyond the prompt's prediction", "factor": factor}
        return {
            "schedule": {
                "name": "flow-match Euler",
                "of": "AI Toolkit's Krea 2 pipeline",
                "shift": "by the size" if not recipe.schedule_mu else "fixed",
                "mu": loop.mu_of(recipe, job.size),
            },
            "guidance": guidance,
            "guidance_rule": recipe.guidance,
            "latents": "float32",
            "decoded": "in tiles" if _tiled(job) else "whole",
            "text_encoder": {
                "name": QWEN3_VL.title,
                "hidden_states": list(STATES),
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": TEXT_LENGTH,
            },
        }


class Krea2Edit(Krea2):
    """Krea 2 with control images, in the text and behind the picture's tokens; without any it is Krea 2."""

    def _encoder(self) -> Qwen3Vl:
        return SeeingQwen3Vl(SEEING, states=STATES, needs=_NEEDS)

    def texts(self, job: Job) -> list[Text]:
        texts = super().texts(job)
        if not job.references:
            return texts
        recipe = _recipe(job)
        pictures, sight = control.seen(job.references, recipe), control.sight(recipe)
        settings = SeeingTemplate(**vars(texts[0].settings), sight=sight)
        return [
            replace(text, text=control.in_text(text.text, len(pictures)), settings=settings, pictures=pictures)
            for text in texts
        ]

    def check_references(self, job: Job) -> None:
        for index, picture in enumerate(job.references):
            check_seen(picture.width, picture.height, index + 1, control.sight(_recipe(job)))

    def encode_references(
        self, autoencoder: nn.Module, job: Job, generator: torch.Generator, device: str
    ) -> tuple[torch.Tensor, ...]:
        assert isinstance(autoencoder, AutoencoderKLQwenImage)
        return control.encode(
            autoencoder, job.references, _recipe(job), job.size, torch_dtype(job.dtype), generator, device
        )

    def reference_settings(self, job: Job) -> Hashable:
        recipe = _recipe(job)
        return recipe.posterior, (job.size.width * job.size.height if recipe.match_target_res else None)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe = _recipe(job)
        references = {
            "see": "each other" if recipe.isolated else "everything",
            "pixels": "as the picture's" if recipe.match_target_res else "a megapixel at most",
            "in_text": len(texts[0].pictures),
            "latents": f"drawn ({recipe.posterior})",
        }
        return {**super().describe(job, texts), "references": references if job.references else None}


def model_of(facts: ModelFacts) -> Krea2:
    return Krea2Edit(facts) if facts.files in (O_EDIT.files, O_EDIT_TURBO.files) else Krea2(facts)


def _tiled(job: Job) -> bool:
    return _recipe(job).tiles and bool(job.options.own.get(VAE_TILING.name, False))


def _recipe(job: Job) -> Krea2Recipe:
    assert isinstance(job.recipe, Krea2Recipe)
    return job.recipe
