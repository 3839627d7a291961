"""FLUX.2's code behind the shared run: its parts, texts, references, schedule, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import FileError
from ...options import torch_dtype
from ...parts.encoder import Text
from ...parts.flux2_vae.autoencoder import Flux2Vae
from ...parts.flux2_vae.network import Flux2AutoEncoder
from ...parts.flux_vae.autoencoder import denormalised
from ...parts.language_model import mistral
from ...parts.language_model.encoder import EncoderSettings, LanguageModel
from ...parts.language_model.mistral import MistralSettings
from ...parts.language_model.qwen3 import qwen3_encoder
from ...parts.part import Network
from ...pictures.pixels import to_pixels
from ..model import Model
from ..schedule import Schedule
from . import control, loop
from .facts import MISTRAL, MISTRAL_STATES, QWEN3, QWEN3_STATES
from .network import DoubleStreamBlock, Flux2Transformer
from .recipes import TEXT_LENGTH, Flux2Recipe
from .tokens import DOWNSCALE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...layers.cached_blocks import Returned
    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

_IMAGE_TOKEN = "[IMG]"
_LARGEST_SIDE = 16384  # pixels; positions are computed, so that only ComfyUI's own widgets end somewhere
_ACTIVATIONS = 1 << 31  # bytes; of the transformer and of the text encoder


class Transformer(Network):
    """The transformer in the released layout."""

    def __init__(self) -> None:
        blocks = ("double_blocks", "single_blocks")
        super().__init__("transformer", Flux2Transformer, blocks, needs="which is not FLUX.2's")

    def returned(self, block: nn.Module) -> Returned:
        return "image, text" if isinstance(block, DoubleStreamBlock) else "tokens"

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        return _ACTIVATIONS


class TextEncoder(LanguageModel):
    """512 rows of three hidden states side by side, padding included.

    No mask reaches the transformer, which attends to all rows: those of the padding matter as well.
    """

    def activation_bytes(self, latents: Sequence[int] | None, dtype: torch.dtype) -> int:
        return _ACTIVATIONS


class Flux2(Model):
    """See :class:`..model.Model`."""

    def __init__(self, facts: ModelFacts) -> None:
        self._embedded = facts.guidance == "embedded"
        self._vae = Flux2Vae()
        if self._embedded:
            self._states, needs = MISTRAL_STATES, f"This model needs {MISTRAL.title}."
            encoder: LanguageModel = TextEncoder(
                "text_encoder", MISTRAL, mistral.make, mistral.load_tokenizer,
                states=MISTRAL_STATES, padded=True, needs=needs,
            )  # fmt: skip
        else:
            self._states, needs = QWEN3_STATES, f"This model needs {QWEN3.title}."
            encoder = qwen3_encoder(QWEN3, states=QWEN3_STATES, thinking=False, needs=needs, part=TextEncoder)
        self._encoder = encoder
        super().__init__(facts, (Transformer(), encoder, self._vae))

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        if transformer.config().get("guidance_embed") != self._embedded:
            holds = "klein, which has no guidance embedding" if self._embedded else "FLUX.2-dev"
            raise FileError(
                f"{transformer.name!r} holds {holds}; model is {self.facts.id}. Set model to what the file was made "
                "for."
            )
        states = len(self._states)
        given, wanted = source.config().get("hidden_size"), transformer.config().get("context_in_dim")
        if not isinstance(given, int) or states * given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {states} times {given} values a token, and the "
                f"transformer of {transformer.name!r} takes {wanted}. Choose the {self._encoder.files.title} that "
                f"belongs to {self.facts.title}."
            )
        self._vae.check_channels(checkpoint, "transformer")

    def largest_side(self, checkpoint: Checkpoint) -> int:
        return _LARGEST_SIDE

    def texts(self, job: Job) -> list[Text]:
        recipe = _recipe(job)
        prompts = [job.typed.prompt]
        if not self._embedded and job.guidance_scale > recipe.guided_above:
            prompts.append(job.typed.negative_prompt)
        settings = EncoderSettings(self._cast_rope(job))
        if self._embedded:
            settings = MistralSettings(settings.cast_rope, job.typed.system_prompt or recipe.system_prompt)
            # an image token in a prompt would stand for an image that is not there; AI Toolkit removes it from dev's
            prompts = [prompt.replace(_IMAGE_TOKEN, "") for prompt in prompts]
        return [Text(prompt, TEXT_LENGTH, settings) for prompt in prompts]

    def _cast_rope(self, job: Job) -> bool:
        choice = _recipe(job).cast_rope
        if job.dtype == "float32":
            # there is nothing to round: one embedding serves every recipe
            return False
        chosen = job.options.text_encoder_quantization
        # what the trainer's encoder would be, also where the file is packed already
        held = self.facts.quantization["text_encoder"] if chosen == "model default" else chosen
        return choice == "always" or (choice == "unquantised" and held == "none")

    def check_references(self, job: Job) -> None:
        for index, picture in enumerate(job.references):
            control.check_size(picture.width, picture.height, index + 1)

    def encode_references(
        self, autoencoder: nn.Module, job: Job, generator: torch.Generator, device: str
    ) -> tuple[torch.Tensor, ...]:
        assert isinstance(autoencoder, Flux2AutoEncoder)
        images = [picture.pixels for picture in job.references]
        return control.encode(autoencoder, images, torch_dtype(job.dtype), device)

    def reference_settings(self, job: Job) -> Hashable:
        # neither the recipe nor the picture's size
        return None

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return (1, self.facts.latent.channels, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def schedule(self, job: Job, steps: int) -> Schedule:
        return Schedule(loop.sigmas(steps, job.size))

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, Flux2AutoEncoder)
        # to float32 first, then denormalised and rounded half to even: AI Toolkit flux2/src/pipeline.py
        return to_pixels(denormalised(autoencoder.decode(latents).float()), autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        settings = texts[0].settings
        assert isinstance(settings, EncoderSettings)
        method = "embedded in the model, one call a step" if self._embedded else "classifier-free"
        return {
            "schedule": {"name": "flow-match Euler", "of": "AI Toolkit's FLUX.2 pipeline", "shift": "by the size"},
            "guidance": {"method": method} if len(texts) > 1 or self._embedded else None,
            "text_encoder": {
                "name": self._encoder.files.title,
                "hidden_states": list(self._states),
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": TEXT_LENGTH,
            },
        }


def model_of(facts: ModelFacts) -> Flux2:
    return Flux2(facts)


def _recipe(job: Job) -> Flux2Recipe:
    assert isinstance(job.recipe, Flux2Recipe)
    return job.recipe
