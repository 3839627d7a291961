"""How weights are held and run."""

from __future__ import annotations

from typing import Any, cast

from ..pipelines.errors import InputError
from ..pipelines.models import catalogue, runtime_options
from ..pipelines.options import (
    ATTENTIONS,
    PLACEMENTS,
    QUANTIZATION_CHOICES,
    Attention,
    Chosen,
    Placement,
    QuantizationChoice,
    RuntimeOptions,
)
from ..pipelines.words import shown
from .shared import CATEGORY, changed, check_number, search_words, widgets


class AITKRuntimeOptions:
    """Choices to a value for the loader."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        quantization = (
            f"{{}} model default: what the model's page says ({_defaults()}); where the computer's memory cannot hold "
            "that, the type that some models state for it, which the sampler then says. fp8_e4m3fn: stored in float8, "
            "computed in dtype. The others are the types of AI Toolkit's {}, and make what it makes: qfloat8, qint8, "
            "qint4, qint2, qfloat8_e5m2 and qfloat8_e4m3fnuz by optimum-quanto, uint7 to uint2 by AI Toolkit's own "
            "rule, float8 and int8 by torchao, which must be installed. All save memory and change the picture. Any "
            "choice but model default is kept."
        )
        own = runtime_options()
        return {
            "required": {
                "transformer_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        # the classic canvas makes a node as wide as its longest label, and cuts that row's value
                        "display_name": "transformer as",
                        "tooltip": quantization.format("How the transformer's weights are held.", "'qtype'"),
                    },
                ),
                "text_encoder_quantization": (
                    list(QUANTIZATION_CHOICES),
                    {
                        "default": "model default",
                        "display_name": "text encoder as",
                        "tooltip": quantization.format("How the text encoder's weights are held.", "'qtype_te'")
                        + " AI Toolkit's own interface sets it to qfloat8: choose that to match its previews.",
                    },
                ),
                **widgets(own, required=True),
            },
            "optional": {
                "transformer_attention": (
                    list(ATTENTIONS),
                    {
                        "default": "default",
                        "advanced": True,
                        "tooltip": "default: torch's own, as in every reference. flash, flash 3, sage, xformers: the "
                        "packages flash-attn, flash-attn-3, sageattention and xformers, where they are installed, on "
                        "CUDA; other last bits, another picture.",
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
                        f"There are {_blocks()}, by the model; more means all.",
                    },
                ),
                "placement": (
                    list(PLACEMENTS),
                    {
                        "default": "automatic",
                        "tooltip": "Where weights are. automatic: what fits stays on the GPU between runs, until "
                        "something else needs the room; blocks that do not fit come for their turn. resident: all of a "
                        "part, even where it may not fit. streamed: the transformer's blocks come for their turn, "
                        "blocks_on_cpu of them, or all where that is 0. sequential: all blocks of every part, and "
                        "nothing stays: the least memory. All give the same picture.",
                    },
                ),
                "compile": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "Compiles the transformer's blocks with torch.compile: the first run takes a minute "
                        "or more, later ones are faster, with other LoRAs and strengths too. Rounds elsewhere: another "
                        "picture than AI Toolkit's. Needs triton on a GPU, a C++ compiler on a CPU.",
                    },
                ),
                "embeddings_on_disk": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "advanced": True,
                        "tooltip": "Keeps encoded prompts in ComfyUI's user folder, in __aitk/embeddings: after a "
                        "restart, a known prompt needs no text encoder. At most 1 GB, the longest unused leave; the "
                        "prompt itself is not in there. Delete the folder whenever you like. The same picture.",
                    },
                ),
                "step_caching": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "round": 0.001,
                        "advanced": True,
                        "tooltip": "Leaves out most of the transformer's blocks in a step where the first one's part "
                        "changed by no more than this since the last whole step (diffusers' first-block cache; 0.1 is "
                        "a tenth). 0: off, every step whole, as in AI Toolkit. Others use 0.05 to 0.15: the higher, "
                        "the faster, and the farther off. Changes the picture: by 8 of 255 levels at most, 1.2 on "
                        "average, at 0.1 on a Lumina with random weights, on a CPU, which tells nothing of real ones.",
                    },
                ),
                **widgets(own, required=False),
            },
        }

    RETURN_TYPES = ("AITK_OPTIONS",)
    RETURN_NAMES = ("options",)
    OUTPUT_TOOLTIPS = ("For Load AITK Model.",)
    FUNCTION = "make"
    CATEGORY = CATEGORY
    DESCRIPTION = "How weights are held and run: quantisation, attention kernels, placement, compilation, step caching."
    SEARCH_ALIASES = search_words(
        "quantization", "quantize", "quanto", "qfloat8", "qint8", "fp8", "torchao", "float8", "uint4", "4 bit",
        "low vram", "flash attention", "sage attention", "block swap", "offload", "vram", "memory", "step cache",
        "first block cache", "teacache", "wavespeed",
    )  # fmt: skip

    def make(
        self,
        transformer_quantization: str,
        text_encoder_quantization: str,
        transformer_attention: str = "default",
        blocks_on_cpu: int = 0,
        placement: str = "automatic",
        compile: bool = False,
        embeddings_on_disk: bool = True,
        step_caching: float = 0.0,
        **own: Any,
    ) -> tuple[RuntimeOptions]:
        for name, value, choices in (
            ("transformer_quantization", transformer_quantization, QUANTIZATION_CHOICES),
            ("text_encoder_quantization", text_encoder_quantization, QUANTIZATION_CHOICES),
            ("transformer_attention", transformer_attention, ATTENTIONS),
            ("placement", placement, PLACEMENTS),
        ):
            if value not in choices:
                raise InputError(f"{name} {shown(value)} is unknown. Choose one of: {', '.join(choices)}.")
        check_number("blocks_on_cpu", blocks_on_cpu, whole=True)
        if not isinstance(embeddings_on_disk, bool):
            raise InputError(f"embeddings_on_disk is {shown(embeddings_on_disk)}: choose true or false.")
        if blocks_on_cpu < 0:
            raise InputError(f"blocks_on_cpu is {shown(blocks_on_cpu)}: choose 0 or more.")
        check_number("step_caching", step_caching)
        if not 0 <= step_caching <= 1:
            raise InputError(f"step_caching is {shown(step_caching)}: choose 0, which is off, to 1.")
        return (
            RuntimeOptions(
                cast("QuantizationChoice", transformer_quantization),
                cast("QuantizationChoice", text_encoder_quantization),
                cast("Attention", transformer_attention),
                blocks_on_cpu,
                Chosen.of(changed(runtime_options(), own)),
                cast("Placement", placement),
                compile,
                embeddings_on_disk,
                float(step_caching),
            ),
        )


def _defaults() -> str:
    """What `model default` means where it is not none, by model."""
    found = [
        f"{quantization} for the {part.replace('_', ' ')} of {facts.title}"
        for facts in catalogue().values()
        for part, quantization in facts.quantization.items()
    ]
    return "; ".join(["none", *found])


def _blocks() -> str:
    counts = [facts.main_blocks for facts in catalogue().values()]
    return f"{min(counts)} to {max(counts)}"
