"""How weights are held and run."""

from __future__ import annotations

from typing import Any, cast

from ..pipelines.errors import InputError
from ..pipelines.handle import (
    ATTENTIONS,
    QUANTIZATION_CHOICES,
    TEXT_ENCODER_ATTENTIONS,
    Attention,
    QuantizationChoice,
    RuntimeOptions,
    TextEncoderAttention,
)
from .load_model import CATEGORY


class AITKRuntimeOptions:
    """Choices to a value for the loader."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        quantization = (
            "{} model default: what the model's page says (none; qfloat8 for the text encoder of FLUX.2); where the "
            "computer's memory cannot hold that, the type that some models state for it, which the sampler then says. "
            "qfloat8 and qint8: "
            "optimum-quanto, as AI Toolkit's {} does. fp8_e4m3fn: stored in float8, computed in dtype. All save memory "
            "and change the picture. Any choice but model default is kept."
        )
        return {
            "required": {
                "transformer_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        "tooltip": quantization.format("How the transformer's weights are held.", "'quantize'"),
                    },
                ),
                "text_encoder_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        "tooltip": quantization.format("How the text encoder's weights are held.", "'quantize_te'")
                        + " AI Toolkit's own interface sets it to qfloat8: choose that to match its previews.",
                    },
                ),
                "text_encoder_attention": (
                    list(TEXT_ENCODER_ATTENTIONS),
                    {
                        "default": "auto",
                        "tooltip": "Soft-capping of the attention logits of Gemma2, Lumina Image 2.0's text encoder. "
                        "auto: off, as under the versions that AI Toolkit pins. softcap: on, as the newest "
                        "transformers does by itself.",
                    },
                ),
            },
            "optional": {
                "transformer_attention": (
                    list(ATTENTIONS),
                    {
                        "default": "default",
                        "tooltip": "default: torch's own, as in every reference. flash, sage: the packages flash-attn "
                        "and sageattention, where they are installed, on CUDA; other last bits, another picture.",
                    },
                ),
                "blocks_on_cpu": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1000,
                        "tooltip": "How many of the transformer's main blocks stay in CPU memory and come to the GPU "
                        "for their turn alone (kohya's blocks_to_swap), at the least: the run takes more by itself "
                        "where the GPU's memory asks for it, and the report says how many. Slower, the same picture. "
                        "Lumina Image 2.0 has 26, FLUX.2-dev 56, klein 4B 25 and 9B 32, OmniGen2 32; more means all.",
                    },
                ),
            },
        }

    RETURN_TYPES = ("AITK_OPTIONS",)
    RETURN_NAMES = ("options",)
    OUTPUT_TOOLTIPS = ("For Load AITK Model.",)
    FUNCTION = "make"
    CATEGORY = CATEGORY
    DESCRIPTION = "How weights are held and run: quantisation, attention kernels, blocks kept off the GPU."
    SEARCH_ALIASES = [
        "quantize", "quanto", "qfloat8", "qint8", "fp8", "low vram", "softcap", "gemma", "flash attention",
        "sage attention", "block swap", "offload", "vram", "memory",
    ]  # fmt: skip

    def make(
        self,
        transformer_quantization: str,
        text_encoder_quantization: str,
        text_encoder_attention: str,
        transformer_attention: str = "default",
        blocks_on_cpu: int = 0,
    ) -> tuple[RuntimeOptions]:
        for name, value, choices in (
            ("transformer_quantization", transformer_quantization, QUANTIZATION_CHOICES),
            ("text_encoder_quantization", text_encoder_quantization, QUANTIZATION_CHOICES),
            ("text_encoder_attention", text_encoder_attention, TEXT_ENCODER_ATTENTIONS),
            ("transformer_attention", transformer_attention, ATTENTIONS),
        ):
            if value not in choices:
                raise InputError(f"{name} {value!r} is unknown. Choose one of: {', '.join(choices)}.")
        if blocks_on_cpu < 0:
            raise InputError(f"blocks_on_cpu is {blocks_on_cpu}: choose 0 or more.")
        return (
            RuntimeOptions(
                cast(QuantizationChoice, transformer_quantization),
                cast(QuantizationChoice, text_encoder_quantization),
                cast(TextEncoderAttention, text_encoder_attention),
                cast(Attention, transformer_attention),
                blocks_on_cpu,
            ),
        )
