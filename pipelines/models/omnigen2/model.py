"""OmniGen2's code behind the shared run: its parts, its texts and images, its schedule, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL

from ...errors import FileError, InputError
from ...options import torch_dtype
from ...parts.encoder import Text
from ...parts.flux_vae.autoencoder import DOWNSCALE, FluxVae, denormalised
from ...parts.language_model import qwen2_5
from ...parts.language_model.encoder import EncoderSettings, LanguageModel
from ...parts.language_model.qwen2_5_files import QWEN2_5_VL
from ...parts.part import Network
from ...pictures.pixels import to_pixels
from ..model import Model, check_table
from . import loop, pixels
from .network import OmniGen2Transformer2DModel
from .recipes import MOST_REFERENCES, REFERENCE_TOKENS, TEXT_LENGTH, OmniGen2Recipe
from .schedule import OmniGen2Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

_NEEDS = "OmniGen2 needs Qwen2.5-VL 3B."


class OmniGen2(Model):
    """See :class:`..model.Model`."""

    def __init__(self, facts: ModelFacts) -> None:
        self._vae = FluxVae("OmniGen2 needs FLUX.1's, ae.safetensors.")
        encoder = LanguageModel(
            "text_encoder",
            QWEN2_5_VL,
            qwen2_5.make,
            qwen2_5.load_tokenizer,
            states=(-1,),
            padded=False,
            needs=_NEEDS,
            surplus=qwen2_5.UNUSED,
        )
        transformer = Network("transformer", OmniGen2Transformer2DModel, blocks=("layers",))
        super().__init__(facts, (transformer, encoder, self._vae))

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        given, wanted = source.config().get("hidden_size"), transformer.config().get("text_feat_dim")
        if given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                f"{transformer.name!r} takes {wanted}. {_NEEDS}"
            )
        self._vae.check_channels(checkpoint, "transformer")

    def largest_side(self, checkpoint: Checkpoint) -> int:
        # the first axis counts text tokens and the sides of the reference images
        needed = TEXT_LENGTH + MOST_REFERENCES * REFERENCE_TOKENS + 1
        _, rows, columns, patch = check_table(checkpoint, "transformer", needed)
        return min(rows, columns) * patch * DOWNSCALE

    def texts(self, job: Job) -> list[Text]:
        recipe = _recipe(job)
        system_prompt = job.typed.system_prompt or recipe.system_prompt
        if recipe.image_guidance_scale > 1 and job.guidance_scale <= 1:
            raise InputError(
                f"image_guidance_scale of AITK Recipe Options would do nothing at guidance_scale {job.guidance_scale}. "
                "Raise that above 1, or put the former back to 1."
            )

        def chat(text: str) -> str:
            return f"<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"

        # twice: AI Toolkit applies it, and so does the pipeline that it calls
        texts = [chat(chat(job.typed.prompt))]
        if job.guidance_scale > recipe.guided_above:
            once = not (job.typed.negative_prompt or recipe.template_empty_negative_twice)
            texts.append(chat("") if once else chat(chat(job.typed.negative_prompt)))
        # AI Toolkit and ai-toolkit-inference both cast the whole encoder; in float32 there is nothing to round
        settings = EncoderSettings(cast_rope=job.dtype != "float32")
        return [Text(text, TEXT_LENGTH, settings) for text in texts]

    def check_references(self, job: Job) -> None:
        recipe = _recipe(job)
        if recipe.image_guidance_scale > 1 and not job.references:
            raise InputError(
                "image_guidance_scale of AITK Recipe Options would do nothing: no control image is connected. Connect "
                "one, or put the scale back to 1."
            )
        if not recipe.squash_references:
            for index, picture in enumerate(job.references):
                pixels.check_size(picture.width, picture.height, index + 1)

    def encode_references(
        self, autoencoder: nn.Module, job: Job, generator: torch.Generator, device: str
    ) -> tuple[torch.Tensor, ...]:
        assert isinstance(autoencoder, AutoencoderKL)
        images = [picture.pixels for picture in job.references]
        return pixels.encode(autoencoder, images, _recipe(job), job.size, torch_dtype(job.dtype), generator, device)

    def reference_settings(self, job: Job) -> Hashable:
        recipe = _recipe(job)
        squashed = (job.size.width, job.size.height) if recipe.squash_references else None
        return recipe.posterior, squashed

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        width, height = pixels.rendered(size)
        return (1, self.facts.latent.channels, height // DOWNSCALE, width // DOWNSCALE)

    def schedule(self, job: Job, steps: int) -> OmniGen2Schedule:
        _, _, height, width = self.latent_shape(job.size)
        return OmniGen2Schedule.of(steps, height * width)

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, AutoencoderKL)
        return to_pixels(denormalised(pixels.decode(autoencoder, latents, job.size)), autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe = _recipe(job)
        guidance: dict[str, Any] | None = None
        if len(texts) > 1:
            guidance = {
                "method": "classifier-free",
                "image_guidance_scale": recipe.image_guidance_scale,
                "as_the_preview": recipe.image_guidance_scale == 1,
                "reference_images": "in every pass" if recipe.image_guidance_scale <= 1 else "in two of three passes",
            }
        return {
            "schedule": {"name": "flow-match Euler", "of": "OmniGen2", "shift": "square root of latent pixels / 40"},
            "guidance": guidance,
            "template": "chat template, twice",
            "negative_template": "chat template, twice; an empty negative prompt "
            + ("too" if recipe.template_empty_negative_twice else "once"),
            "references": {
                "first": "squashed to the picture's size" if recipe.squash_references else "own size",
                "latents": "the mean" if recipe.posterior == "mean" else f"drawn ({recipe.posterior})",
            },
            "text_encoder": {"text_length": TEXT_LENGTH},
        }


def model_of(facts: ModelFacts) -> OmniGen2:
    return OmniGen2(facts)


def _recipe(job: Job) -> OmniGen2Recipe:
    assert isinstance(job.recipe, OmniGen2Recipe)
    return job.recipe
