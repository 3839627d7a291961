"""Tells for which model a LoRA file was made, so that a stray file can be named.

Names tell the layout of a model, and widths tell models of one layout apart: a ``double_blocks`` of 4096 columns is
FLUX.2-klein 9B's, of 6144 FLUX.2-dev's. Names are compared with underscores between their steps. The first row that
fits counts: rows that measure stand before those that go by names alone, and those before what the catalogue's models
state.

Widths are those of the classes of diffusers and of the released files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .keys import take_apart
from .kinds import oft_v2
from .names import plain

if TYPE_CHECKING:
    from ..files.header import Header, TensorInfo

_MOST_KEYS = 20_000  # of a file; the largest has a tenth
_LONGEST = 100  # characters of what the metadata say

# which of a layer's tensors tell its rows, and its columns, and by which of their axes
_ROWS = {"lora_B": 0, "diff": 0, "hada_w1_a": 0, "magnitude": 0, "glora_b1": 0}
_COLUMNS = {"lora_A": 1, "diff": 1, "hada_w1_b": 1, "glora_b2": 1}


class Size(NamedTuple):
    """A layer of this name, as a regular expression, has so many rows or columns; None is any."""

    name: str
    rows: int | None = None
    columns: int | None = None


class Family(NamedTuple):
    """A model, the names that its files have, all of them, and sizes, one of which must be found if any is given."""

    title: str
    names: tuple[str, ...]
    sizes: tuple[Size, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What a file shows: its names, one a line, and what is known of the sizes."""

    text: str
    sizes: Mapping[str, Mapping[str, int]]

    def fits(self, family: Family) -> bool:
        if not all(re.search(name, self.text, re.MULTILINE) for name in family.names):
            return False
        return not family.sizes or any(self._has(size) for size in family.sizes)

    def _has(self, size: Size) -> bool:
        wanted = {key: value for key, value in (("rows", size.rows), ("columns", size.columns)) if value is not None}
        return any(
            all(found.get(key) == value for key, value in wanted.items())
            for name, found in self.sizes.items()
            if re.search(size.name, name)
        )


# FLUX' layers in the released names: those that take what is as wide as the model, and those that give it
_FLUX, _FLUX_IN = r"(?:double|single)_blocks_\d", r"(?:img|txt)_attn_(?:qkv|proj)$|linear1$|(?:img|txt)_mlp_0$"
_FLUX_OUT = r"linear2$|(?:img|txt)_mlp_2$"
# diffusers' names
_BLOCKS = r"(?:^|_)transformer_blocks_\d"
_FLUX2 = r"to_qkv_mlp_proj$|(?:^|_)ff(?:_context)?_linear_(?:in|out)$|(?:double|single)_stream_modulation"
_ADDED = r"add_[qkv]_proj$|to_add_out$|single_transformer_blocks_\d+_attn_to_out$"
_TAKES = r"to_[qkv]$|add_[qkv]_proj$|to_add_out$|to_qkv_mlp_proj$|linear_in$|net_0_proj$|proj_mlp$|to_out_0$"
# diffusers gives the layers of these the same names and widths
_THREE = "FLUX.1, Chroma or FIBO"
_JOINT = r"_attn_(?:to_[qkv]|add_[qkv]_proj)$"
_LUMINA = (r"(?:layers|refiner)_\d+_(?:attention|attn|feed_forward)_",)
_LUMINA_IN = (
    r"attention_(?:qkv|to_[qkv])$|attn_to_[qkv]$|feed_forward_(?:w[13]|linear_[13])$|(?:attention|attn)_(?:to_)?out"
)
_UNET = (r"(?:down|up|mid|input|output|middle)_blocks?_",)
_CONTEXT = r"attn2_to_[kv]$"
_WAN = (r"blocks_\d+_(?:self_attn_[qkvo]|cross_attn_[qkvo]|cross_attn_k_img|ffn_[02])$",)
_WAN_IN = r"(?:self|cross)_attn_[qo]$|ffn_0$"
_ATTN1 = (r"transformer_blocks_\d+_attn1",)
_ATTN1_IN = r"attn1_to_[qkv]$"


def _wide(names: str, columns: int) -> tuple[Size, ...]:
    return (Size(names, columns=columns),)


def _flux(width: int) -> tuple[Size, ...]:
    # the rows of the attention too: OFT has no columns
    rows = (Size(r"attn_qkv$", 3 * width), Size(r"attn_proj$", width), Size(_FLUX_OUT, width))
    return (Size(_FLUX_IN, columns=width), *rows)


_FAMILIES: tuple[Family, ...] = (
    # what has names of its own
    Family("Chroma Radiance", (r"nerf_blocks_\d",)),
    Family("Chroma", (r"distilled_guidance_layer",)),
    Family("HunyuanVideo", (r"double_blocks_\d+_(?:img|txt)_mlp_fc[12]",)),
    Family("Krea 2", (r"txtfusion|text_fusion|blocks_\d+_(?:attn_(?:w[qkvo]|to_gate)|ff_(?:gate|up|down))$",)),
    Family("Boogu-Image", (r"double_stream_layers_\d|img_instruct_attn|instruct_feed_forward",)),
    Family("HiDream-I1 or HiDream-E1", (r"(?:double|single)_stream_blocks_\d",)),
    # behind HiDream-I1, which has such layers too
    Family("FIBO", (r"caption_projection_\d",)),
    Family("Zeta-Chroma", (r"(?:^|_)dec_net_",)),
    Family("Z-Image L2P", (r"local_decoder_",)),
    Family("HiDream-O1", (r"language_model_layers_\d+_self_attn",)),
    Family("Anima", (r"llm_adapter|blocks_\d+_(?:self|cross)_attn_(?:[qkv]|output)_proj$",)),
    Family("F-Lite", (r"blocks_\d+_(?:self_attn_(?:qkv|proj)|cross_attn_(?:context_kv|proj))$",)),
    Family("YuE2", (r"layers_\d+_(?:self_attn_qkv_proj|mlp_gate_up_proj)$",)),
    Family("PRX", (r"blocks_\d+_attention_(?:img_qkv|txt_kv)_proj$",)),
    Family("ERNIE-Image", (r"layers_\d+_(?:self_attention_to_|mlp_linear_fc2)",)),
    Family("MiniMax-H3", (r"blocks_\d+_attn_qkv_proj$|blocks_\d+_adaln_proj",)),
    Family("ACE-Step 1.5", (r"layers_\d+_cross_attn_(?:to_)?[qkvo]",)),
    Family("LTX-2", (r"audio_attn\d|audio_to_video_attn|video_to_audio_attn",)),
    Family("AuraFlow", (r"joint_transformer_blocks_\d",)),
    Family("Stable Diffusion 3", (r"joint_blocks_\d",)),
    Family("Nucleus-Image", (r"transformer_blocks_\d+_(?:encoder_proj|img_mlp_shared_expert)",)),
    Family("Qwen-Image 2.1", (r"transformer_blocks_\d+_img_mlp_(?:proj|out|gate_layer)$",)),
    # FLUX' layout in the released names
    Family("FLUX.2-klein 9B", (_FLUX,), _flux(4096)),
    Family("FLUX.2-dev", (_FLUX,), _flux(6144)),
    Family(
        "FLUX.2-klein 4B", (_FLUX,),
        (Size("linear1$", 27648), Size("mlp_0$", 18432), Size("mlp_2$", None, 9216), Size("linear2$", None, 12288)),
    ),
    # Chroma has none of its layers of modulation, nor what feeds them
    Family("FLUX.1", (_FLUX, r"(?:img|txt)_mod_lin$|single_blocks_\d+_modulation_lin$|(?:guidance|vector)_in_")),
    Family(
        "FLUX.1 or Chroma", (_FLUX,),
        (Size("linear1$", 21504), Size("mlp_0$", 12288), Size("mlp_2$", None, 12288), Size("linear2$", None, 15360)),
    ),
    # klein 4B has 5 and 20 blocks
    Family("FLUX.1 or Chroma", (r"double_blocks_(?:[5-9]|1\d)_|single_blocks_[23]\d_",), _flux(3072)),
    Family("FLUX.2-klein 4B or FLUX.1", (_FLUX,), _flux(3072)),
    # in diffusers' names
    Family("FLUX.2-klein 9B", (f"{_FLUX2}|{_ADDED}",), _wide(_TAKES, 4096)),
    Family("FLUX.2-dev", (f"{_FLUX2}|{_ADDED}",), _wide(_TAKES, 6144)),
    Family("FLUX.2-klein 4B", (_FLUX2,), _wide(_TAKES, 3072)),
    Family("Nucleus-Image", (_BLOCKS, r"img_(?:mlp_net|mod_1)"), _wide(_TAKES, 2048)),
    # Mage-Flow has 12 blocks
    Family(
        "Qwen-Image", (_BLOCKS, r"(?:img|txt)_(?:mlp_net|mod_1)", r"transformer_blocks_(?:1[2-9]|[2-5]\d)_"),
        _wide(_TAKES, 3072),
    ),
    Family("Qwen-Image or Mage-Flow", (_BLOCKS, r"(?:img|txt)_(?:mlp_net|mod_1)")),
    Family("FLUX.1", (_BLOCKS, r"norm1?(?:_context)?_linear$"), _wide(r"norm1?(?:_context)?_linear$", 3072)),
    Family(
        _THREE, (r"single_transformer_blocks_\d+_(?:attn_to_[qkv]|proj_mlp|proj_out)$",), _wide(_TAKES, 3072),
    ),
    Family(_THREE, (_BLOCKS, r"ff(?:_context)?_net_0_proj$", r"attn_to_[qkv]$"), _wide(_TAKES, 3072)),
    Family("Qwen-Image", (r"transformer_blocks_(?:19|[2-5]\d)_attn_(?:to|add)_",), _wide(_TAKES, 3072)),
    Family(
        "FLUX.2-klein 4B, FLUX.1, Chroma, FIBO, Qwen-Image or Mage-Flow", (_BLOCKS, _JOINT), _wide(_TAKES, 3072),
    ),
    Family("Stable Diffusion 3", (_BLOCKS, _JOINT), (*_wide(_TAKES, 1536), *_wide(_TAKES, 2432))),
    Family("FLUX.2-klein 9B or Qwen-Image 2.1", (_BLOCKS, r"_attn_to_[qkv]$"), _wide(_TAKES, 4096)),
    Family("FLUX.2-dev or Krea 2", (_BLOCKS, r"_attn_to_[qkv]$"), _wide(_TAKES, 6144)),
    Family("MiniMax-H3", (_BLOCKS,), _wide(_TAKES, 5376)),
    # Lumina's layout
    Family("Ideogram 4", _LUMINA, _wide(_LUMINA_IN, 4608)),
    Family("Z-Image, Z-Image L2P, Ming-Image or Zeta-Chroma", _LUMINA, _wide(_LUMINA_IN, 3840)),
    Family("Lumina Image 2.0", _LUMINA, _wide(_LUMINA_IN, 2304)),
    Family("OmniGen2", _LUMINA, _wide(_LUMINA_IN, 2520)),
    # UNets, by the width of the texts
    Family("Stable Diffusion 1.5", _UNET, _wide(_CONTEXT, 768)),
    Family("Stable Diffusion 2", _UNET, _wide(_CONTEXT, 1024)),
    Family("SDXL", _UNET, _wide(_CONTEXT, 2048)),
    # videos and others with two attentions
    Family("Wan 2.1 1.3B", _WAN, _wide(_WAN_IN, 1536)),
    Family("Wan 2.2 5B", _WAN, _wide(_WAN_IN, 3072)),
    Family("Wan 2.1 or 2.2 14B", _WAN, _wide(_WAN_IN, 5120)),
    Family("Wan 2.1 or 2.2", (r"(?:^|_)blocks_\d+_attn1_to_", r"(?:^|_)blocks_\d+_(?:attn2_to_|ffn_net)")),
    Family("PixArt", _ATTN1, _wide(_ATTN1_IN, 1152)),
    Family("LTX-Video", (*_ATTN1, r"attn2"), _wide(_ATTN1_IN, 2048)),
    Family("LTX-2", (*_ATTN1, r"attn2"), _wide(_ATTN1_IN, 4096)),
    Family("CogView4", _ATTN1, _wide(_ATTN1_IN, 4096)),
    # by names alone
    Family("FLUX.2", (_FLUX2,)),
    Family("FLUX.1", (r"single_transformer_blocks_\d",)),
    Family("FLUX.1", (r"lora_unet_double_blocks_\d",)),
    Family("FLUX.2 or FLUX.1", (_FLUX,)),
    Family("Stable Diffusion 3", (_BLOCKS, r"add_q_proj")),
    Family("Wan", _WAN),
    Family("Ideogram 4", (r"layers_\d+_adaln_modulation$|llm_cond_proj",)),
    Family("Z-Image", (r"layers_\d+_attention_to_[qkv]$|layers_\d+_adaLN_modulation_0$",)),
    Family("Lumina Image 2.0", (r"layers_\d+_attention_qkv$|layers_\d+_adaLN_modulation_1$",)),
    Family("OmniGen2", (r"^diffusion_model_layers_\d+_feed_forward_linear_[123]$",)),
    Family("Lumina Image 2.0", (r"layers_\d+_feed_forward_linear_[123]$|layers_\d+_norm1_linear$",)),
    Family("SDXL", (r"^lora_te2_|add_embedding|(?:blocks_4_1|[12]_attentions_\d)_transformer_blocks_[1-9]",)),
    Family("Stable Diffusion 1 or 2, or SDXL", _UNET),
    Family("PixArt or another transformer with attn1/attn2", _ATTN1),
)  # fmt: skip


def recognise(header: Header, metadata: Mapping[str, str]) -> str | None:
    """The model that a file looks like, and what ``ss_base_model_version`` says; None where neither tells."""
    seen = _seen(header)
    title = next((family.title for family in _FAMILIES if seen.fits(family)), None) or _stated(header)
    version = metadata.get("ss_base_model_version")
    if version:
        said = repr(version[:_LONGEST])
        return f"{title} (its metadata says {said})" if title else said
    return title


def trained_on(metadata: Mapping[str, str]) -> str | None:
    """The model of the catalogue that AI Toolkit's metadata name; None where they name none of them."""
    from ..models import catalogue

    model = catalogue().get(metadata.get("ss_base_model_version", ""))
    return None if model is None else model.title


def _stated(header: Header) -> str | None:
    """The model of the catalogue whose own signature a file has."""
    from ..models import catalogue

    keys = list(header.tensors)[:_MOST_KEYS]
    for model in catalogue().values():
        if all(any(fragment in key for key in keys) for fragment in model.lora.signature):
            return model.title
    return None


def _seen(header: Header) -> _Seen:
    sizes: dict[str, dict[str, int]] = {}
    for name, role, info in _roles(header):
        found = sizes.setdefault(name, {})
        if role in _ROWS and info.shape:
            found["rows"] = info.shape[_ROWS[role]]
        if role in _COLUMNS and len(info.shape) > 1:
            found["columns"] = info.shape[_COLUMNS[role]]
        found |= _of_blocks(role, info.shape)
    return _Seen("\n".join(sizes), sizes)


def _of_blocks(role: str, shape: tuple[int, ...]) -> dict[str, int]:
    """What OFT and IA3 tell, which hold one side of a layer alone."""
    if role == "oft_blocks" and len(shape) > 2:
        return {"rows": shape[-3] * shape[-1]}
    if role == "oftv2_R" and len(shape) == 2 and shape[0] > 1:
        return {"columns": shape[0] * oft_v2.block_height(shape[1])}
    if role == "ia3_l" and len(shape) == 2:
        return {"columns": shape[1]} if shape[0] == 1 else {"rows": shape[0]}
    return {}


def _roles(header: Header) -> Iterator[tuple[str, str, TensorInfo]]:
    for _, (key, info) in zip(range(_MOST_KEYS), header.tensors.items(), strict=False):
        name, role, _ = take_apart(key[-2 * _LONGEST :])
        yield plain(name), role, info
