"""Lumina2's code behind the shared sampler: loading its parts, its texts, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, Lumina2Transformer2DModel
from torch import nn

from ...checkpoint import Checkpoint
from ...errors import FileError
from ...handle import PipelineHandle, Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...pixels import to_pixels
from ...sizes import Size
from ...sources.source import Source, check_complete
from ..facts import Recipe
from ..runtime import DenoiseJob, Embedding, Text, Typed
from . import gemma2, loop
from .facts import EVERY_STEP, MODEL, PROMPT_MARKER, TEXT_LENGTH, VAE_DOWNSCALE, Lumina2Recipe
from .sd_scripts import decoder_roundings

_CLASSES = {"transformer": Lumina2Transformer2DModel, "vae": AutoencoderKL}
_DEFAULT_SOFTCAP = 50.0  # google/gemma-2-2b config.json: attn_logit_softcapping


class Lumina2Runtime:
    """See :class:`..runtime.ModelRuntime`, whose methods these are."""

    def check_weights(self, part: str, checkpoint: Checkpoint) -> None:
        source = checkpoint.source(part)
        if part == "text_encoder":
            gemma2.check_files(source)
            given, wanted = source.config().get("hidden_size"), checkpoint.config("transformer").get("cap_feat_dim")
            if given != wanted:
                raise FileError(
                    f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                    f"{checkpoint.source('transformer').name!r} takes {wanted}. Choose files of one model."
                )
            return
        if part == "vae":
            config = source.config()
            scales = [config.get(name) for name in ("scaling_factor", "shift_factor")]
            if not all(isinstance(scale, int | float) for scale in scales) or not scales[0]:
                raise FileError(f"{source.name!r}: {source.config_name} has scaling_factor, shift_factor {scales}.")
            given, wanted = config.get("latent_channels"), checkpoint.config("transformer").get("in_channels")
            if given != wanted:
                raise FileError(
                    f"The VAE of {source.name!r} has {given} channels, and the transformer of "
                    f"{checkpoint.source('transformer').name!r} takes {wanted}. Lumina Image 2.0 needs FLUX.1's, "
                    "ae.safetensors."
                )
        if part == "transformer":
            _check_axes(source)
        check_complete(source, parameter_shapes(self.empty(source)))

    def load(
        self, source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
    ) -> nn.Module:
        if source.component == "text_encoder":
            return gemma2.load(source, dtype, quantization, check)
        tensors = source.read(source.tensor_infos())
        where = f"{source.name} {source.component}"
        return fill(self.empty(source), tensors, dtype, where, check, quantization=quantization)

    def empty(self, source: Source) -> nn.Module:
        part = source.component
        if part == "text_encoder":
            return gemma2.empty(source)
        cls = _CLASSES[part]
        config = source.config()
        if config.get("_class_name") != cls.__name__:
            raise FileError(f"{source.name!r} has a {config.get('_class_name')} as {part}, not {cls.__name__}.")
        return build_empty(lambda: cls.from_config(config), f"{source.config_name} of {source.name!r}")

    def lora_root(self, module: nn.Module) -> nn.Module:
        return module.model if isinstance(module, gemma2.Gemma2TextEncoder) else module

    def blocks(self, part: str, module: nn.Module) -> Sequence[nn.Module]:
        return [] if part == "vae" else list(cast(Any, self.lora_root(module)).layers)

    def texts(self, recipe: Recipe, handle: PipelineHandle, typed: Typed, guidance_scale: float) -> list[Text]:
        assert isinstance(recipe, Lumina2Recipe)
        attention = handle.options.text_encoder_attention
        wanted = {"auto": recipe.softcap, "softcap": True, "no softcap": False}[attention]
        value = handle.checkpoint.config("text_encoder").get("attn_logit_softcapping") or _DEFAULT_SOFTCAP
        # in float32 there is nothing to round: one embedding serves every recipe
        cast_rope = recipe.cast_rope and handle.dtype != "float32"
        settings = gemma2.Gemma2Settings(value if wanted else None, cast_rope, recipe.encoder_sdpa and not wanted)
        system_prompt = typed.system_prompt or recipe.system_prompt
        template = system_prompt + PROMPT_MARKER if system_prompt else ""
        texts = [Text(template + typed.prompt, TEXT_LENGTH, settings)]
        if guidance_scale > 1 or recipe.negative_at_1:
            negative = template + typed.negative_prompt if recipe.template_negative else typed.negative_prompt
            texts.append(Text(negative, TEXT_LENGTH, settings))
        return texts

    def encode(self, text_encoder: nn.Module, text: Text, device: str) -> Embedding:
        assert isinstance(text_encoder, gemma2.Gemma2TextEncoder)
        text_encoder.configure(text.settings)
        return text_encoder(text, device)

    def check_control(self, sizes: Sequence[tuple[int, int]], recipe: Recipe) -> None:
        """No recipe of this model takes references; the sampler has refused them."""

    def encode_control(
        self,
        vae: nn.Module,
        images: Sequence[torch.Tensor],
        recipe: Recipe,
        size: Size,
        dtype: torch.dtype,
        generator: torch.Generator,
        device: str,
    ) -> tuple[torch.Tensor, ...]:
        raise AssertionError("no recipe of this model takes references")

    def activation_bytes(self, part: str, size: Size | None, dtype: torch.dtype) -> int:
        if part != "vae" or size is None:
            return 1 << 30
        # ComfyUI's measure of this autoencoder's decoder: 2178 * 64 values per latent pixel (comfy/sd.py)
        return 2178 * 64 * (size.width // VAE_DOWNSCALE) * (size.height // VAE_DOWNSCALE) * dtype.itemsize

    def noise_shape(self, size: Size, recipe: Recipe) -> tuple[int, ...]:
        return (1, MODEL.latent_channels, size.height // VAE_DOWNSCALE, size.width // VAE_DOWNSCALE)

    def sigmas(self, recipe: Recipe, steps: int, size: Size) -> torch.Tensor:
        assert isinstance(recipe, Lumina2Recipe)
        return loop.sigmas(recipe, steps)

    def denoise(self, transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
        return loop.denoise(transformer, job)

    def decode(self, vae: nn.Module, latents: torch.Tensor, recipe: Recipe, size: Size) -> torch.Tensor:
        assert isinstance(vae, AutoencoderKL)
        assert isinstance(recipe, Lumina2Recipe)
        config = vae.config
        with decoder_roundings(vae) if recipe.modules == "sd-scripts" else nullcontext():
            image = vae.decode(latents / config["scaling_factor"] + config["shift_factor"], return_dict=False)[0]
        # denormalised and clamped in the run's dtype: diffusers' VaeImageProcessor
        return to_pixels((image * 0.5 + 0.5).clamp(0, 1), vae.dtype)

    def to_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        config = checkpoint.config("vae")
        return latents / config["scaling_factor"] + config["shift_factor"]

    def from_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        config = checkpoint.config("vae")
        return (latents - config["shift_factor"]) * config["scaling_factor"]

    def describe(self, recipe: Recipe, texts: Sequence[Text]) -> dict[str, Any]:
        assert isinstance(recipe, Lumina2Recipe)
        settings = texts[0].settings
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
