"""Qwen3-VL as a text encoder that sees pictures: its tokens stand in the text, where ``<|image_pad|>`` stands.

transformers' own networks run on patches that are made here (:mod:`.qwen3_vl_pixels`): its processor needs torchvision.
The language model gets the rows of embeddings and their positions, so that no version of transformers decides those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from ...errors import FileError, InputError
from ...weights.folder import read_json
from .encoder import LoadedLanguageModel, with_sdpa
from .qwen2_5 import WholeTextTokenizer
from .qwen2_5 import load_tokenizer as load_text_tokenizer
from .qwen2_5_vl import rotary_positions
from .qwen3_vl import KEYS, Qwen3Vl, TemplateSettings
from .qwen3_vl_pixels import LIMITS, PATCH, Sight, patches_of
from .qwen_vl_patches import MERGED, Limits, Patches
from .tower_rope import TowerRope

if TYPE_CHECKING:
    from ...weights.source import Source
    from ..encoder import Embedding, Text
    from .encoder import Tokenizer
    from .seeing_files import SeeingFiles

_PAD = "<|image_pad|>"
_PROCESSOR = "preprocessor_config.json"
_TOWER_KEYS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "num_position_embeddings",
    "deepstack_visual_indexes",
)  # fmt: skip


@dataclass(frozen=True)
class SeeingTemplate(TemplateSettings):
    """What changes an embedding besides the text and the pictures; ``sight`` is how these are brought to a size."""

    sight: Sight = field(kw_only=True)


class SeeingTokenizer:
    """A text to ids, in which each picture has one id, :attr:`picture`."""

    pad_id = WholeTextTokenizer.pad_id
    pad_left = WholeTextTokenizer.pad_left

    def __init__(self, tokenizer: WholeTextTokenizer, limits: Limits, name: str) -> None:
        found = tokenizer.id_of(_PAD)
        if found is None:
            raise FileError(f"The tokenizer of {name!r} has no {_PAD}, where pictures stand. Choose that of Qwen3-VL.")
        self._tokenizer = tokenizer
        self.picture = found
        self.limits = limits

    def __call__(self, text: str, settings: Any) -> list[int]:
        return self._tokenizer(text, settings)


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer, and the limits of the image processor where that lies beside it; raises FileError."""
    tokenizer, found = load_text_tokenizer(source), source.tokenizer()
    limits = LIMITS
    if isinstance(found, Path) and (found / _PROCESSOR).is_file():
        limits = _limits(read_json(found / _PROCESSOR, source.name), source.name)
    return SeeingTokenizer(tokenizer, limits, source.name)


def _limits(config: Mapping[str, Any], name: str) -> Limits:
    size = config.get("size")
    size = size if isinstance(size, Mapping) else {}
    # the older keys win, as in transformers
    least = config.get("min_pixels") or size.get("shortest_edge", LIMITS.least)
    most = config.get("max_pixels") or size.get("longest_edge", LIMITS.most)
    if not isinstance(least, int) or not isinstance(most, int) or not 0 < least <= most:
        raise FileError(f"{_PROCESSOR} of {name!r} has min_pixels {least} and max_pixels {most}. Download it again.")
    return Limits(least, most)


class SeeingQwen3Vl(Qwen3Vl):
    """Qwen3-VL with its vision tower as the part ``text_encoder``; texts with pictures have :class:`SeeingTemplate`.

    Args:
        files: what its files look like.
        states: see :class:`.encoder.LanguageModel`.
        needs: see :class:`.encoder.LanguageModel`.
    """

    def __init__(self, files: SeeingFiles, *, states: Sequence[int], needs: str) -> None:
        super().__init__(files, states=states, needs=needs, network=make, load_tokenizer=load_tokenizer)
        self.surplus = ("lm_head.", "rotary_emb.", "rotary_pos_emb.")

    def check_kind(self, source: Source) -> None:
        super().check_kind(source)
        tower = source.config().get("vision_config")
        if not isinstance(tower, dict) or "depth" not in tower:
            self._refuse(source, f"has no vision tower: vision_config is missing in {source.config_name}")
        if (tower.get("patch_size", PATCH), tower.get("spatial_merge_size", MERGED)) != (PATCH, MERGED):
            self._refuse(source, f"has another vision tower: its tokens are not {PATCH * MERGED} pixels a side")

    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        if not text.pictures:
            return super().encode(module, text, device)
        assert isinstance(module, LoadedLanguageModel) and isinstance(text.settings, SeeingTemplate)
        tokenizer = module.tokenizer
        assert isinstance(tokenizer, SeeingTokenizer)
        self._configure(module, text)
        seen = patches_of(text.pictures, text.settings.sight, tokenizer.limits, module.run_dtype, device)
        # no text is cut: the pictures' tokens must all be there
        own = [*self._tokens(module, text, text.settings.before + text.text), *self._ending(module, text)]
        ids = _placed(own, tokenizer.picture, seen.tokens)
        found = _hidden_states(module, torch.tensor([ids], device=device), seen, tokenizer.picture)
        return self._embedding(module, found, text.settings, cut=0)


def _placed(ids: Sequence[int], picture: int, counts: Sequence[int]) -> list[int]:
    """The ids with as many of each picture's as it has tokens; raises InputError where the text names others."""
    if ids.count(picture) != len(counts):
        raise InputError(f"A prompt cannot contain {_PAD}, which stands for a control image. Remove it.")
    following = iter(counts)
    return [one for own in ids for one in ([own] if own != picture else [own] * next(following))]


def _hidden_states(
    module: LoadedLanguageModel, ids: torch.Tensor, seen: Patches, picture: int
) -> Sequence[torch.Tensor]:
    """See :meth:`.encoder.LoadedLanguageModel.hidden_states`."""
    model: Any = module.model
    rows = model.embed_tokens(ids)
    tower = model.visual(seen.values.to(module.run_dtype), grid_thw=seen.grids)
    where = ids == picture
    rows = rows.masked_scatter(where[..., None], tower.pooler_output.to(rows.dtype))
    return model(
        inputs_embeds=rows,
        attention_mask=torch.ones_like(ids),
        position_ids=rotary_positions(ids[0].tolist(), picture, seen.grids.tolist()).to(ids.device),
        visual_pos_masks=where,
        deepstack_visual_embeds=tower.deepstack_features,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states


class PatchEmbedding(nn.Module):
    """Patches to rows by a product of matrices, as AI Toolkit has it; transformers' convolution rounds otherwise.

    Args:
        proj: the convolution, whose kernels are the patches.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight.flatten(1)
        return nn.functional.linear(patches.to(weight.dtype), weight, self.proj.bias)


def make(config: Mapping[str, Any]) -> nn.Module:
    """The language model, with the tower as its module ``visual``."""
    try:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel
    except ImportError:
        raise InputError(
            "A text encoder that sees pictures by Qwen3-VL needs transformers 4.57.0 or newer; installed is "
            f"{transformers.__version__}. Update it."
        ) from None
    text: dict[str, Any] = {key: config[key] for key in KEYS if key in config}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    text["rope_theta"] = config.get("rope_theta", 5e6)
    text["rope_scaling"] = {
        "rope_type": "default", "mrope_section": rope.get("mrope_section", [24, 20, 20]), "mrope_interleaved": True,
    }  # fmt: skip
    tower = {key: value for key, value in config["vision_config"].items() if key in _TOWER_KEYS}
    model: Any = Qwen3VLTextModel(with_sdpa(Qwen3VLTextConfig(**text)))
    visual: Any = Qwen3VLVisionModel(with_sdpa(Qwen3VLVisionConfig(**tower)))
    visual.patch_embed = PatchEmbedding(visual.patch_embed.proj)
    visual.rotary_pos_emb = TowerRope(visual.rotary_pos_emb)
    model.visual = visual
    return model
