"""Qwen2.5-VL as a text encoder that sees pictures: its tokens stand in the text, where ``<|image_pad|>`` stands.

transformers' own networks run on patches that are made here (:mod:`.qwen2_5_vl_pixels`): its processor needs
torchvision. The language model gets the rows of embeddings, and with them no ids: so whether rows of pictures have
positions in a grid or one after the other is decided here, and not by the version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from ...errors import FileError, InputError
from ...weights.folder import read_json
from ..encoder import Embedding, Text
from .encoder import EncoderSettings, LanguageModel, LoadedLanguageModel, with_sdpa
from .qwen2_5 import WholeTextTokenizer
from .qwen2_5 import load_tokenizer as load_text_tokenizer
from .qwen2_5_vl_pixels import LIMITS, PATCH, Sight, patches_of
from .qwen_vl_patches import FRAMES, MERGED, Limits, Patches
from .tower_rope import TowerRope

if TYPE_CHECKING:
    from ...weights.source import Source
    from .encoder import Tokenizer
    from .seeing_files import SeeingFiles

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
UNUSED = ("lm_head.", "rotary_emb.", "rotary_pos_emb.")  # that no network here has
_PAD = "<|image_pad|>"
_PROCESSOR = "preprocessor_config.json"
# configuration -> the keys that transformers' classes have too
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout", "pad_token_id",
)  # fmt: skip
_TOWER_KEYS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "window_size", "out_hidden_size", "fullatt_block_indexes",
)  # fmt: skip
# what pictures are cut by, and the windows that most blocks see
_RELEASED = {
    "patch_size": PATCH, "spatial_merge_size": MERGED, "temporal_patch_size": FRAMES, "in_channels": 3,
    "window_size": 112,
}  # fmt: skip


@dataclass(frozen=True)
class SeeingSettings(EncoderSettings):
    """What changes an embedding besides the text and the pictures.

    Attributes:
        dropped: rows at the beginning, of the template, that are left out of the embedding.
        sight: how pictures are brought to a size.
        grid_positions: whether the rows of a picture have positions of rows and columns, as transformers before 5 gave
            them; else they count on, as they do in it since, where nobody tells it which rows are a picture's.
    """

    dropped: int = field(kw_only=True)
    sight: Sight = field(kw_only=True)
    grid_positions: bool = field(kw_only=True)


class SeeingTokenizer:
    """A text to ids, in which each picture has one id, :attr:`picture`."""

    pad_id = WholeTextTokenizer.pad_id
    pad_left = WholeTextTokenizer.pad_left

    def __init__(self, tokenizer: WholeTextTokenizer, limits: Limits, name: str) -> None:
        found = tokenizer.id_of(_PAD)
        if found is None:
            raise FileError(
                f"The tokenizer of {name!r} has no {_PAD}, where pictures stand. Choose that of Qwen2.5-VL."
            )
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
    least = config.get("min_pixels", size.get("shortest_edge", LIMITS.least))
    most = config.get("max_pixels", size.get("longest_edge", LIMITS.most))
    if not isinstance(least, int) or not isinstance(most, int) or not 0 < least <= most:
        raise FileError(f"{_PROCESSOR} of {name!r} has min_pixels {least} and max_pixels {most}. Download it again.")
    return Limits(least, most)


class LoadedSeeingModel(LoadedLanguageModel):
    """Tokenizer, vision tower and layers."""

    def seen(self, text: Text, device: str) -> Patches | None:
        """The pictures of a text for the tower; None where it has none."""
        assert isinstance(self.tokenizer, SeeingTokenizer) and isinstance(text.settings, SeeingSettings)
        if not text.pictures:
            return None
        return patches_of(text.pictures, text.settings.sight, self.tokenizer.limits, self.run_dtype, device)

    def placed(self, ids: Sequence[int], seen: Patches | None) -> list[int]:
        """The ids with as many of each picture's as it has tokens; raises InputError where the text names others."""
        assert isinstance(self.tokenizer, SeeingTokenizer)
        picture = self.tokenizer.picture
        counts = [] if seen is None else seen.tokens
        if ids.count(picture) != len(counts):
            raise InputError(f"A prompt cannot contain {_PAD}, which stands for a control image. Remove it.")
        following = iter(counts)
        return [one for own in ids for one in ([own] if own != picture else [own] * next(following))]

    def last_state(self, ids: torch.Tensor, seen: Patches | None, grid_positions: bool) -> torch.Tensor:
        """The normed output of the last layer, [1, length, D], of ids [1, length]."""
        assert isinstance(self.tokenizer, SeeingTokenizer)
        model: Any = self.model
        rows = model.embed_tokens(ids)
        positions = None
        if seen is not None:
            found = model.visual(seen.values.to(self.run_dtype), grid_thw=seen.grids)
            # transformers 4 gives the merged rows alone
            tower = found if isinstance(found, torch.Tensor) else found.pooler_output
            where = (ids == self.tokenizer.picture)[..., None]
            rows = rows.masked_scatter(where, tower.to(rows.dtype))
            if grid_positions:
                positions = rotary_positions(ids[0].tolist(), self.tokenizer.picture, seen.grids.tolist())
                positions = positions.to(ids.device)
        mask = torch.ones_like(ids)
        return model(inputs_embeds=rows, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state


class SeeingLanguageModel(LanguageModel):
    """Qwen2.5-VL with its vision tower as the part ``text_encoder``; texts have :class:`SeeingSettings`.

    Args:
        files: what its files look like.
        needs: closes messages about another encoder.
    """

    def __init__(self, files: SeeingFiles, *, needs: str) -> None:
        super().__init__(
            "text_encoder", files, make, load_tokenizer, states=(-1,), padded=False, needs=needs, surplus=UNUSED
        )

    def check_kind(self, source: Source) -> None:
        super().check_kind(source)
        tower = source.config().get("vision_config")
        if not isinstance(tower, dict) or "depth" not in tower:
            self._refuse(source, f"has no vision tower: vision_config is missing in {source.config_name}")
        config = source.config()
        sections, heads = _sections(config), config.get("num_attention_heads")
        if not sections or not heads or 2 * sum(sections) * heads != config.get("hidden_size"):
            self._refuse(source, f"has mrope_section {sections}, which are not half of a head's channels")
        given, taken = tower.get("out_hidden_size"), config.get("hidden_size")
        if given != taken:
            self._refuse(source, f"has a vision tower that gives {given} values a token, and layers that take {taken}")
        for key, value in _RELEASED.items():
            if tower.get(key, value) != value:
                self._refuse(source, f"has another vision tower, whose {key} is {tower[key]} and not {value}")

    def encode(self, module: nn.Module, text: Text, device: str) -> Embedding:
        assert isinstance(module, LoadedSeeingModel) and isinstance(text.settings, SeeingSettings)
        self._configure(module, text)
        seen = module.seen(text, device)
        ids = module.placed(module.tokens(text), seen)
        if len(ids) > text.length:
            raise InputError(
                f"The prompt and the control images are {len(ids)} tokens, and the text encoder takes {text.length}. "
                "Shorten the prompt, or connect fewer control images."
            )
        rows = module.last_state(torch.tensor([ids], device=device), seen, text.settings.grid_positions)
        embeds = rows[:, text.settings.dropped :].to(module.run_dtype).cpu()
        return Embedding(embeds, torch.ones(embeds.shape[:2], dtype=torch.int64), 0)

    def _loaded(self, tokenizer: Tokenizer, model: nn.Module, dtype: torch.dtype, name: str) -> LoadedLanguageModel:
        return LoadedSeeingModel(tokenizer, model, dtype, name)


def rotary_positions(ids: Sequence[int], picture: int, grids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Positions of frame, row and column, int64 [3, 1, length]: of a text all three count on, of a picture's rows they
    are those of its grid, from where the text stood; the text after it goes on behind the longer side.

    Args:
        ids: with a picture's id once for each of its tokens; between two pictures stands something else.
        picture: that id.
        grids: of each picture frames, rows and columns of patches, 2 x 2 of which are a token.
    """
    found, start, following = [], 0, iter(grids)
    for is_picture, run in groupby(ids, key=lambda own: own == picture):
        if is_picture:
            frames, rows, columns = next(following)
            sides = [torch.arange(frames), torch.arange(rows // MERGED), torch.arange(columns // MERGED)]
            found.append(torch.cartesian_prod(*sides).T + start)
            start += max(rows, columns) // MERGED
        else:
            length = len(list(run))
            found.append(torch.arange(start, start + length).expand(3, -1))
            start += length
    return torch.cat(found, dim=1)[:, None]


def _sections(config: Mapping[str, Any]) -> list[int]:
    """How a head's frequencies are shared out among frame, row and column; none where nothing says it."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    found = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    return found if isinstance(found, list) and all(isinstance(own, int) for own in found) else []


def make(config: Mapping[str, Any]) -> nn.Module:
    """The language model, with the tower as its module ``visual``."""
    try:
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
            Qwen2_5_VLTextConfig,
            Qwen2_5_VLVisionConfig,
        )
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
            Qwen2_5_VisionTransformerPretrainedModel,
            Qwen2_5_VLTextModel,
        )
    except ImportError:
        raise InputError(
            "A text encoder that sees pictures needs transformers 4.52.0 or newer; installed is "
            f"{transformers.__version__}. Update it."
        ) from None
    text: dict[str, Any] = {key: config[key] for key in _TEXT_KEYS if key in config}
    # nothing is generated
    text |= {"bos_token_id": None, "eos_token_id": None, "use_sliding_window": False}
    text["rope_theta"] = config.get("rope_theta", 1e6)
    text["rope_scaling"] = {"type": "mrope", "rope_type": "default", "mrope_section": _sections(config)}
    tower = {key: value for key, value in config["vision_config"].items() if key in _TOWER_KEYS}
    model: Any = Qwen2_5_VLTextModel(with_sdpa(Qwen2_5_VLTextConfig(**text)))
    visual: Any = Qwen2_5_VisionTransformerPretrainedModel(with_sdpa(Qwen2_5_VLVisionConfig(**tower)))
    visual.rotary_pos_emb = TowerRope(visual.rotary_pos_emb)
    model.visual = visual
    return model
