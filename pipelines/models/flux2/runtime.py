"""FLUX.2's code behind the shared sampler: loading its parts, its texts and references, and from latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from ...checkpoint import Checkpoint
from ...errors import FileError, InputError
from ...handle import PipelineHandle, Quantization
from ...loading import build_empty, fill, parameter_shapes
from ...pixels import to_pixels
from ...sizes import Size
from ...sources.source import Source, check_complete
from ..facts import ModelFacts, Recipe
from ..runtime import DenoiseJob, Embedding, Text, Typed
from . import control, loop, text_encoder
from .autoencoder import Flux2AutoEncoder
from .facts import TEXT_LENGTH, Flux2Recipe
from .text_encoder import Flux2TextEncoder, TextSettings
from .text_files import TextEncoderFacts
from .tokens import DOWNSCALE
from .transformer import Flux2Transformer

_CLASSES = {"transformer": Flux2Transformer, "vae": Flux2AutoEncoder}
_IMAGE_TOKEN = "[IMG]"


class Flux2Runtime:
    """See :class:`..runtime.ModelRuntime`, whose methods these are.

    Args:
        model: which of the FLUX.2 models.
        encoder: its text encoder.
    """

    def __init__(self, model: ModelFacts, encoder: TextEncoderFacts) -> None:
        self._model = model
        self._encoder = encoder

    def check_weights(self, part: str, checkpoint: Checkpoint) -> None:
        source = checkpoint.source(part)
        transformer = checkpoint.config("transformer")
        if part == "text_encoder":
            text_encoder.check_files(self._encoder, source)
            states = len(self._encoder.hidden_states)
            given, wanted = source.config().get("hidden_size"), transformer.get("context_in_dim")
            if not isinstance(given, int) or states * given != wanted:
                raise FileError(
                    f"The text encoder of {source.name!r} gives {states} times {given} values a token, and the "
                    f"transformer of {checkpoint.source('transformer').name!r} takes {wanted}. Choose the "
                    f"{self._encoder.title} that belongs to {self._model.title}."
                )
            return
        if part == "transformer" and transformer.get("guidance_embed") != (self._model.guidance == "embedded"):
            holds = "klein, which has no guidance embedding" if self._model.guidance == "embedded" else "FLUX.2-dev"
            raise FileError(
                f"{source.name!r} holds {holds}; model is {self._model.id}. Set model to what the file was made for."
            )
        if part == "vae":
            channels = source.config().get("latent_channels")
            given, wanted = channels * 4 if isinstance(channels, int) else None, transformer.get("in_channels")
            if given != wanted:
                raise FileError(
                    f"The VAE of {source.name!r} makes tokens of {given} channels, and the transformer of "
                    f"{checkpoint.source('transformer').name!r} takes {wanted}. FLUX.2 has a VAE of its own, "
                    "flux2-vae.safetensors or the ae.safetensors of its repository."
                )
        check_complete(source, parameter_shapes(self.empty(source)))

    def load(
        self, source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
    ) -> nn.Module:
        if source.component == "text_encoder":
            return text_encoder.load(self._encoder, source, dtype, quantization, check)
        tensors = source.read(source.tensor_infos())
        where = f"{source.name} {source.component}"
        return fill(self.empty(source), tensors, dtype, where, check, quantization=quantization)

    def empty(self, source: Source) -> nn.Module:
        if source.component == "text_encoder":
            return text_encoder.empty(source)
        cls = _CLASSES[source.component]
        config = source.config()
        if config.get("_class_name") != cls.__name__:
            raise FileError(
                f"{source.name!r} has a {config.get('_class_name')} as {source.component}, which is not FLUX.2's."
            )
        return build_empty(lambda: cast(nn.Module, cls.from_config(config)), f"{source.config_name} of {source.name!r}")

    def lora_root(self, module: nn.Module) -> nn.Module:
        return module.model if isinstance(module, Flux2TextEncoder) else module

    def blocks(self, part: str, module: nn.Module) -> Sequence[nn.Module]:
        if part == "vae":
            return []
        lists = ("layers",) if part == "text_encoder" else ("double_blocks", "single_blocks")
        root = self.lora_root(module)
        return [block for name in lists for block in root.get_submodule(name).children()]

    def texts(self, recipe: Recipe, handle: PipelineHandle, typed: Typed, guidance_scale: float) -> list[Text]:
        assert isinstance(recipe, Flux2Recipe)
        if typed.system_prompt and not recipe.system_prompt:
            raise InputError(
                f"{self._model.title} takes no system prompt: its template has no place for one. Empty it."
            )
        if handle.options.text_encoder_attention != "auto":
            raise InputError(
                f"text_encoder_attention {handle.options.text_encoder_attention!r} is for Gemma2, and "
                f"{self._model.title} has {self._encoder.title}. Set it to auto on AITK Runtime Options."
            )
        settings = TextSettings(typed.system_prompt or recipe.system_prompt, self._cast_rope(recipe, handle))
        prompts = [typed.prompt]
        if self._model.guidance == "classifier-free" and guidance_scale > 1:
            prompts.append(typed.negative_prompt)
        # an image token in a prompt would stand for an image that is not there; AI Toolkit removes it from dev's
        embedded = self._model.guidance == "embedded"
        return [Text(p.replace(_IMAGE_TOKEN, "") if embedded else p, TEXT_LENGTH, settings) for p in prompts]

    def _cast_rope(self, recipe: Flux2Recipe, handle: PipelineHandle) -> bool:
        if handle.dtype == "float32":
            # there is nothing to round: one embedding serves every recipe
            return False
        choice = handle.options.text_encoder_quantization
        held = self._model.quantization["text_encoder"] if choice == "model default" else choice
        return recipe.cast_rope == "always" or (recipe.cast_rope == "unquantised" and held == "none")

    def encode(self, text_encoder: nn.Module, text: Text, device: str) -> Embedding:
        return text_encoder(text, device)

    def check_control(self, sizes: Sequence[tuple[int, int]], recipe: Recipe) -> None:
        for index, (width, height) in enumerate(sizes):
            control.check_size(width, height, index + 1)

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
        assert isinstance(vae, Flux2AutoEncoder)
        return control.encode(vae, images, dtype, device)

    def activation_bytes(self, part: str, size: Size | None, dtype: torch.dtype) -> int:
        if part != "vae" or size is None:
            return 1 << 31
        # ComfyUI's measure of a decoder of this shape: 2178 * 64 values per pixel of the latents before patching
        return 2178 * 64 * (size.width // 8) * (size.height // 8) * dtype.itemsize

    def noise_shape(self, size: Size, recipe: Recipe) -> tuple[int, ...]:
        return (1, self._model.latent_channels, size.height // DOWNSCALE, size.width // DOWNSCALE)

    def sigmas(self, recipe: Recipe, steps: int, size: Size) -> torch.Tensor:
        return loop.sigmas(steps, size)

    def denoise(self, transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
        return loop.denoise(transformer, job)

    def decode(self, vae: nn.Module, latents: torch.Tensor, recipe: Recipe, size: Size) -> torch.Tensor:
        assert isinstance(vae, Flux2AutoEncoder)
        # to float32 first, then denormalised and rounded half to even: AI Toolkit flux2/src/pipeline.py
        image = vae.decode(latents).float()
        return to_pixels((image * 0.5 + 0.5).clamp(0, 1), vae.dtype)

    def to_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        return latents

    def from_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        return latents

    def describe(self, recipe: Recipe, texts: Sequence[Text]) -> dict[str, Any]:
        settings = texts[0].settings
        assert isinstance(settings, TextSettings)
        guided = len(texts) > 1
        method = {"embedded": "embedded in the model, one call a step", "classifier-free": "classifier-free"}
        return {
            "schedule": {"name": "flow-match Euler", "of": "AI Toolkit's FLUX.2 pipeline", "shift": "by the size"},
            "guidance": {"method": method[self._model.guidance]}
            if guided or self._model.guidance == "embedded"
            else None,
            "text_encoder": {
                "name": self._encoder.title,
                "hidden_states": list(self._encoder.hidden_states),
                "rope_in_run_dtype": settings.cast_rope,
                "text_length": TEXT_LENGTH,
            },
        }
