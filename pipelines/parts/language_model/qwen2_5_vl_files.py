"""What files of Qwen2.5-VL look like for an encoder that sees pictures: its language model and its vision tower.

The tower's tensors are called ``visual.`` in the model, whatever the file calls them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...weights.layout import Infos, Layout, Place, SingleFiles
from .files import LanguageModelFiles
from .recognise import kind_of

if TYPE_CHECKING:
    from ...files.header import Header

_PATCHES = "visual.patch_embed.proj.weight"
_LAYER = "layers.0.self_attn.q_proj.weight"
# the encoder alone; ComfyUI's all-in-one checkpoints, and its node Save CLIP
_PREFIXES = ("", "text_encoders.qwen25_7b.transformer.", "qwen25_7b.transformer.")
# name of the language model -> name of the tower, in front of each one's tensors: the repositories' and ComfyUI's
# files; transformers' own names since 4.52
_SPELLINGS = (("model.", "visual."), ("model.language_model.", "model.visual."))
# vision_config of Qwen/Qwen2.5-VL-7B-Instruct: a head has 80 channels in every released size
_TOWER_HEAD = 80
_TOWER = {
    "hidden_act": "silu",
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@dataclass(frozen=True)
class SeeingLanguageModelFiles(LanguageModelFiles):
    """A language model with the vision tower of Qwen2.5-VL; see :class:`.files.LanguageModelFiles`."""

    def files(self) -> SingleFiles:
        layouts = [
            Layout(_PREFIXES, (language + _LAYER, tower + _PATCHES.removeprefix("visual.")), _respelt(language, tower))
            for language, tower in _SPELLINGS
        ]
        return SingleFiles(tuple(layouts), self._config, self.tokenizer, self._stranger)

    def folder_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers' ``config.json``: the language model's keys at the top, the tower's under ``vision_config``."""
        return {**super().folder_config(config), "vision_config": dict(config.get("vision_config") or {})}

    def _stranger(self, header: Header) -> str:
        if header.metadata.get("general.architecture") == "clip":
            return f"it is a vision tower alone (mmproj). {_choose(self.title)}"
        if kind_of(header) in ("Qwen2.5", "Qwen2.5-VL") and not any(_PATCHES in name for name in header.tensors):
            # GGUF files keep it in a second file, and a part is read from one
            return f"it is {self.title} without the vision tower, with which it sees pictures. {_choose(self.title)}"
        return super()._stranger(header)

    def _config(self, infos: Infos) -> dict[str, Any]:
        width, channels, frames, patch, _ = infos[_PATCHES].shape
        blocks = {name.split(".")[2] for name in infos if name.startswith("visual.blocks.")}
        tower = {
            **_TOWER,
            "hidden_size": width,
            "in_channels": channels,
            "temporal_patch_size": frames,
            "patch_size": patch,
            "depth": len(blocks),
            "num_heads": max(1, width // _TOWER_HEAD),
            "intermediate_size": infos["visual.blocks.0.mlp.gate_proj.weight"].shape[0],
            "out_hidden_size": infos["visual.merger.mlp.2.weight"].shape[0],
        }
        return {**super()._config(infos), "vision_config": tower}


def _respelt(language: str, tower: str) -> Any:
    """The places of a spelling's tensors; nothing of the head, which no embedding needs."""

    def places(infos: Infos) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for name in infos:
            if name.startswith("lm_head."):
                found[name] = []
            elif name.startswith(tower):
                found[name] = [Place(f"visual.{name.removeprefix(tower)}")]
            elif name.startswith(language):
                found[name] = [Place(name.removeprefix(language))]
        return found

    return places


def _choose(title: str) -> str:
    return f"Choose {title} in one safetensors file, such as qwen_2.5_vl_7b_fp8_scaled.safetensors, or default"


QWEN2_5_VL_SEEING = SeeingLanguageModelFiles(
    title="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    prefixes=_PREFIXES,
    kinds=("Qwen2.5-VL",),
    head=128,
    # config.json of Qwen/Qwen2.5-VL-7B-Instruct
    constants={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000,
        "attention_dropout": 0.0,
    },
    tokenizer="tokenizer_json",  # ComfyUI's name of it, where a file has one
    final_norm=True,
)
