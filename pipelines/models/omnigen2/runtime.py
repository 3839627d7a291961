"""OmniGen2's code behind the shared sampler: loading its parts, its texts and images, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from ...checkpoint import Checkpoint
from ...errors import FileError, InputError
from ...handle import PipelineHandle, Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...pixels import to_pixels
from ...sizes import Size
from ...sources.source import Source, check_complete
from ..facts import Recipe
from ..runtime import DenoiseJob, Embedding, Text, Typed
from . import loop, pixels, qwen, schedule
from .facts import MODEL, TEXT_LENGTH, VAE_DOWNSCALE, OmniGen2Recipe
from .transformer import OmniGen2Transformer2DModel

_CLASSES = {"transformer": OmniGen2Transformer2DModel, "vae": AutoencoderKL}


class OmniGen2Runtime:
    """See :class:`..runtime.ModelRuntime`, whose methods these are."""

    def check_weights(self, part: str, checkpoint: Checkpoint) -> None:
        source, transformer = checkpoint.source(part), checkpoint.source("transformer")
        if part == "text_encoder":
            qwen.check_files(source)
            given = qwen.language_config(source.config()).get("hidden_size")
            wanted = transformer.config().get("text_feat_dim")
            if given != wanted:
                raise FileError(
                    f"The text encoder of {source.name!r} gives {given} values a token, and the transformer of "
                    f"{transformer.name!r} takes {wanted}. OmniGen2 needs Qwen2.5-VL 3B."
                )
            return
        if part == "vae":
            config = source.config()
            scales = [config.get(name) for name in ("scaling_factor", "shift_factor")]
            if not all(isinstance(scale, int | float) for scale in scales) or not scales[0]:
                raise FileError(f"{source.name!r}: {source.config_name} has scaling_factor, shift_factor {scales}.")
            given, wanted = config.get("latent_channels"), transformer.config().get("in_channels")
            if given != wanted:
                raise FileError(
                    f"The VAE of {source.name!r} has {given} channels, and the transformer of {transformer.name!r} "
                    f"takes {wanted}. OmniGen2 needs FLUX.1's, ae.safetensors."
                )
        check_complete(source, parameter_shapes(self.empty(source)))

    def load(
        self, source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
    ) -> nn.Module:
        if source.component == "text_encoder":
            return qwen.load(source, dtype, quantization, check)
        tensors = source.read(source.tensor_infos())
        where = f"{source.name} {source.component}"
        return fill(self.empty(source), tensors, dtype, where, check, quantization=quantization)

    def empty(self, source: Source) -> nn.Module:
        part = source.component
        if part == "text_encoder":
            return qwen.empty(source)
        cls = _CLASSES[part]
        config = source.config()
        if config.get("_class_name") != cls.__name__:
            raise FileError(f"{source.name!r} has a {config.get('_class_name')} as {part}, not {cls.__name__}.")
        return build_empty(lambda: cls.from_config(config), f"{source.config_name} of {source.name!r}")

    def lora_root(self, module: nn.Module) -> nn.Module:
        return module.model if isinstance(module, qwen.QwenTextEncoder) else module

    def blocks(self, part: str, module: nn.Module) -> Sequence[nn.Module]:
        return [] if part == "vae" else list(self.lora_root(module).get_submodule("layers").children())

    def texts(self, recipe: Recipe, handle: PipelineHandle, typed: Typed, guidance_scale: float) -> list[Text]:
        assert isinstance(recipe, OmniGen2Recipe)
        system_prompt = typed.system_prompt or recipe.system_prompt
        if recipe.image_guidance_scale > 1 and guidance_scale <= 1:
            raise InputError(
                f"image_guidance_scale of AITK Recipe Options would do nothing at guidance_scale {guidance_scale}. "
                "Raise that above 1, or put the former back to 1."
            )

        def chat(text: str) -> str:
            return f"<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"

        # twice: AI Toolkit applies it, and so does the pipeline that it calls
        texts = [chat(chat(typed.prompt))]
        if guidance_scale > 1:
            once = not (typed.negative_prompt or recipe.template_empty_negative_twice)
            texts.append(chat("") if once else chat(chat(typed.negative_prompt)))
        return [Text(text, TEXT_LENGTH, None) for text in texts]

    def encode(self, text_encoder: nn.Module, text: Text, device: str) -> Embedding:
        assert isinstance(text_encoder, qwen.QwenTextEncoder)
        return text_encoder(text, device)

    def activation_bytes(self, part: str, size: Size | None, dtype: torch.dtype) -> int:
        if part != "vae" or size is None:
            return 1 << 30
        width, height = pixels.rendered(size)
        # ComfyUI's measure of this autoencoder's decoder: 2178 * 64 values per latent pixel (comfy/sd.py)
        return 2178 * 64 * (width // VAE_DOWNSCALE) * (height // VAE_DOWNSCALE) * dtype.itemsize

    def noise_shape(self, size: Size, recipe: Recipe) -> tuple[int, ...]:
        width, height = pixels.rendered(size)
        return (1, MODEL.latent_channels, height // VAE_DOWNSCALE, width // VAE_DOWNSCALE)

    def sigmas(self, recipe: Recipe, steps: int, size: Size) -> torch.Tensor:
        _, _, height, width = self.noise_shape(size, recipe)
        return schedule.sigmas(steps, height * width)

    def check_control(self, sizes: Sequence[tuple[int, int]], recipe: Recipe) -> None:
        assert isinstance(recipe, OmniGen2Recipe)
        if recipe.image_guidance_scale > 1 and not sizes:
            raise InputError(
                "image_guidance_scale of AITK Recipe Options would do nothing: no control image is connected. Connect "
                "one, or put the scale back to 1."
            )
        if not recipe.squash_references:
            for index, (width, height) in enumerate(sizes):
                pixels.check_size(width, height, index + 1)

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
        assert isinstance(vae, AutoencoderKL)
        assert isinstance(recipe, OmniGen2Recipe)
        return pixels.encode(vae, images, recipe, size, dtype, generator, device)

    def denoise(self, transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
        return loop.denoise(transformer, job)

    def decode(self, vae: nn.Module, latents: torch.Tensor, recipe: Recipe, size: Size) -> torch.Tensor:
        assert isinstance(vae, AutoencoderKL)
        image = pixels.decode(vae, latents, size)
        # denormalised and clamped in the run's dtype: diffusers' VaeImageProcessor
        return to_pixels((image * 0.5 + 0.5).clamp(0, 1), vae.dtype)

    def to_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        config = checkpoint.config("vae")
        return latents / config["scaling_factor"] + config["shift_factor"]

    def from_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        config = checkpoint.config("vae")
        return (latents - config["shift_factor"]) * config["scaling_factor"]

    def describe(self, recipe: Recipe, texts: Sequence[Text]) -> dict[str, Any]:
        assert isinstance(recipe, OmniGen2Recipe)
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
