"""Lumina2's code behind the shared run: its parts, its texts, its schedule, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL, Lumina2Transformer2DModel

from ...errors import FileError
from ...parts.encoder import Text
from ...parts.flux_vae.autoencoder import DOWNSCALE, FluxVae, decoded, denormalised
from ...parts.language_model import gemma2
from ...parts.language_model.gemma2_files import GEMMA2
from ...parts.part import Network
from ...pictures.pixels import to_pixels
from ..model import Model, check_table
from ..schedule import Schedule
from . import loop
from .facts import TEXT_ENCODER_ATTENTION
from .recipes import EVERY_STEP, PROMPT_MARKER, TEXT_LENGTH, Lumina2Recipe
from .sd_scripts import decoder_roundings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...pictures.sizes import Size
    from ...weights.checkpoint import Checkpoint
    from ...weights.source import Source
    from ..facts import ModelFacts
    from ..model import Denoisers, Denoising, Job

_DEFAULT_SOFTCAP = 50.0  # google/gemma-2-2b config.json: attn_logit_softcapping


class Lumina2Transformer(Network):
    """diffusers' transformer."""

    def __init__(self) -> None:
        super().__init__("transformer", Lumina2Transformer2DModel, blocks=("layers",))

    def check_files(self, source: Source) -> None:
        _check_axes(source)
        super().check_files(source)


class Lumina2(Model):
    """See :class:`..model.Model`."""

    def __init__(self, facts: ModelFacts) -> None:
        self._vae = FluxVae("Lumina Image 2.0 needs FLUX.1's, ae.safetensors.")
        encoder = gemma2.Gemma2(
            "text_encoder",
            GEMMA2,
            gemma2.make,
            gemma2.load_tokenizer,
            states=(-2,),
            padded=True,
            needs="Lumina Image 2.0 needs Gemma2 2B.",
            surplus=gemma2.SURPLUS,
        )
        super().__init__(facts, (Lumina2Transformer(), encoder, self._vae))

    def check_fit(self, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source("text_encoder"), checkpoint.source("transformer")
        given, wanted = source.config().get("hidden_size"), transformer.config().get("cap_feat_dim")
        if given != wanted:
            raise FileError(
                f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                f"{transformer.name!r} takes {wanted}. Choose files of one model."
            )
        self._vae.check_channels(checkpoint, "transformer")

    def largest_side(self, checkpoint: Checkpoint) -> int:
        # the table has one row per patch; 512 patches = 8192 pixels in the release
        _, rows, columns, patch = check_table(checkpoint, "transformer", TEXT_LENGTH + 1)
        return min(rows, columns) * patch * DOWNSCALE

    def texts(self, job: Job) -> list[Text]:
        recipe = _recipe(job)
        attention = job.options.own.get(TEXT_ENCODER_ATTENTION.name, TEXT_ENCODER_ATTENTION.default)
        wanted = recipe.softcap if attention == "auto" else attention == "softcap"
        value = job.checkpoint.config("text_encoder").get("attn_logit_softcapping") or _DEFAULT_SOFTCAP
        settings = gemma2.Gemma2Settings(
            # in float32 there is nothing to round: one embedding serves every recipe
            recipe.cast_rope and job.dtype != "float32",
            value if wanted else None,
        )
        system_prompt = job.typed.system_prompt or recipe.system_prompt
        template = system_prompt + PROMPT_MARKER if system_prompt else ""
        texts = [Text(template + job.typed.prompt, TEXT_LENGTH, settings)]
        if job.guidance_scale > recipe.guided_above:
            negative = job.typed.negative_prompt
            texts.append(Text(template + negative if recipe.template_negative else negative, TEXT_LENGTH, settings))
        return texts

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return (1, self.facts.latent.channels, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def schedule(self, job: Job, steps: int) -> Schedule:
        return Schedule(loop.sigmas(_recipe(job), steps))

    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        return loop.denoise(denoisers("transformer"), picture)

    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        assert isinstance(autoencoder, AutoencoderKL)
        with decoder_roundings(autoencoder) if _recipe(job).modules == "sd-scripts" else nullcontext():
            image = decoded(autoencoder, latents)
        return to_pixels(denormalised(image), autoencoder.dtype)

    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        recipe, settings = _recipe(job), texts[0].settings
        guidance: dict[str, Any] | None = None
        if len(texts) > 1:
            every = recipe.cfg_trunc_ratio >= EVERY_STEP
            guidance = {
                "method": "classifier-free",
                "while_model_time_below": None if every else recipe.cfg_trunc_ratio,
                "norm": "each row as the prompt's"
                if recipe.renorm == "row"
                else {"whole sample, at most": recipe.renorm_cfg, "times": "the prompt's"},
            }
        return {
            "schedule": {"name": "flow-match Euler", "of": recipe.scheduler, "shift": recipe.shift},
            "guidance": guidance,
            "negative_template": "system prompt and marker" if recipe.template_negative else "none",
            "qk_norm_eps": recipe.qk_norm_eps,
            "modules_round_as": recipe.modules,
            "text_encoder": {
                "softcap": settings.softcap,
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": TEXT_LENGTH,
            },
        }


def model_of(facts: ModelFacts) -> Lumina2:
    return Lumina2(facts)


def _recipe(job: Job) -> Lumina2Recipe:
    assert isinstance(job.recipe, Lumina2Recipe)
    return job.recipe


def _check_axes(source: Source) -> None:
    """Raises FileError where the rotary axes do not fill a head, which a single file's tensors cannot tell."""
    config = source.config()
    axes, heads, width = (config.get(name) for name in ("axes_dim_rope", "num_attention_heads", "hidden_size"))
    # sizes that are no numbers are refused by name when the model is made of them
    head = width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else 0
    filled = sum(axes) if isinstance(axes, list | tuple) and all(isinstance(a, int) and a % 2 == 0 for a in axes) else 0
    if head and filled != head:
        raise FileError(
            f"{source.name!r}: a head of its transformer has {head} channels, and the rotary axes {axes} do not fill "
            "it. For a model of your own, put axes_dim_rope into NAME.aitk.json beside the file."
        )
